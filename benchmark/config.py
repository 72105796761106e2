"""Recipe section of the benchmark."""

from __future__ import annotations

from pydantic import Field

from foundation.recipe import Section


class BenchmarkSection(Section):
    """What is measured, how often, for how long."""

    rounds: int = Field(default=5, ge=1, description="fresh processes per variant; ratios need at least 5")
    num_threads: int = Field(default=2, ge=1)
    num_histories: int = Field(default=1000, ge=1, description="test histories of the offline scenario")
    batch_size: int = Field(default=64, ge=1)
    k: int = Field(default=20, ge=10)
    single_requests: int = Field(default=200, ge=10, description="requests of the single-stream scenario, at most")
    max_single_s: float = Field(default=2.0, gt=0, description="a single-stream measurement stops after this long")
    min_offline_s: float = Field(default=1.0, gt=0, description="an offline measurement repeats its histories for this long")
    max_offline_s: float = Field(default=4.0, gt=0, description="and stops at the first batch that ends after this long")
    warmup_s: float = Field(default=0.3, ge=0)
    timeout_s: float = Field(default=300.0, gt=0, description="a process that takes longer becomes a row that says so")
    accuracy_timeout_s: float = Field(default=3600.0, gt=0, description="what ranking all users may take beyond that")
