"""Recipe section of export."""

from __future__ import annotations

from pydantic import Field

from foundation.recipe import Section


class ExportSection(Section):
    """The graph and the engines built from it."""

    k: int = Field(default=20, ge=10, le=3840, description="items returned; TensorRT's TopK allows at most 3840")
    opset: int = Field(default=21, ge=18, le=24)
    parity_histories: int = Field(default=1000, ge=1)
    min_overlap: float = Field(default=0.99, ge=0, le=1, description="top-K overlap with PyTorch below which the export fails")
    trt_targets: list[str] = Field(
        default=["sm80", "sm89", "sm120"], description="compute capabilities, where the builder can be told (RTX)"
    )
    trt_max_batch: int = Field(default=256, ge=64, description="the benchmark asks for batches of up to 64")
    trt_max_length: int = Field(default=1024, ge=1, description="raised to the longest history of the data")
