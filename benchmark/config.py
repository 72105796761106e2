"""Recipe section of the benchmark."""

from __future__ import annotations

from pydantic import Field

from foundation.recipe import Section


class BenchmarkSection(Section):
    """What is measured, how often, for how long."""

    rounds: int = Field(default=5, ge=1, description="fresh processes per variant; ratios need at least 5")
    num_threads: int = Field(
        default=1,
        ge=1,
        description="of the runtime: a core's pace. On two, a small model's depends on where the host puts them, by half",
    )
    num_histories: int = Field(default=1000, ge=1, description="test histories that requests are drawn from")
    max_users: int = Field(default=0, ge=0, description="whose rankings are judged, drawn once; 0 = all")
    batch_size: int = Field(default=64, ge=1)
    k: int = Field(default=20, ge=10)
    single_s: float = Field(default=1.5, gt=0, description="a single-stream run lasts at least this long, and ten requests")
    max_single_requests: int = Field(default=50_000, ge=10, description="and ends after so many, however long that took")
    offline_s: float = Field(default=1.5, gt=0, description="an offline run is as many histories as take about this long")
    server_s: float = Field(default=3.0, gt=0, description="each step of the search for the highest rate lasts this long")
    max_p99_s: float = Field(default=0.05, gt=0, description="the bound on p99 that a rate must hold")
    warmup_s: float = Field(default=0.3, ge=0)
    full: bool = Field(
        default=False,
        description="also: the highest rate, sweeps of batch and catalogue, PyTorch and AOTInductor (make bench-full)",
    )
    endpoint: str = Field(
        default="",
        pattern=r"^$|^(https?://)?[^/\s]+:\d+$",
        description="a server of export.triton.name: HOST:PORT of Triton (gRPC), or http://HOST:PORT (Open Inference Protocol)",
    )
    timeout_s: float = Field(
        default=300.0, gt=0, description="a process that has finished no step (a load, a batch of users) for so long has failed"
    )
