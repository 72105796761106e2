"""Recipe section of quantization."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from foundation.recipe import Section


class QuantizeSection(Section):
    """How the int8 and 4-bit variants are made."""

    int8_per_channel: bool = Field(default=True, description="one scale per output channel instead of one per matrix")
    int8_reduce_range: bool = Field(
        default=True, description="weights of 7 bits: the same ranking on processors without VNNI, which saturate at 8"
    )
    calibration_histories: int = Field(default=256, ge=1, le=100_000, description="training histories that set static scales")
    calibration_length: int = Field(default=50, ge=1, le=4096, description="their most recent items")
    int4_block_size: Literal[16, 32, 64, 128, 256] = Field(default=32, description="weights that share a scale")
    int4_accuracy_level: int = Field(
        default=4, ge=0, le=4, description="0 = library's choice, 1 = fp32 activations, 4 = int8 activations"
    )
