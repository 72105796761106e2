"""Where and in which precision torch computes."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

_MAX_SCORES = 1 << 25  # 128 MiB of float32; sorting them takes six times as much


def device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def rows_at_once(num_items: int, *, cpu: int, gpu: int) -> int:
    """How many rows a pass without gradients takes at once: a GPU waits for its next kernel where they are few.

    On a GPU no more than `_MAX_SCORES` scores over a catalogue of `num_items`, and no fewer than on a CPU.
    """
    return max(min(gpu, _MAX_SCORES // num_items), cpu) if torch.cuda.is_available() else cpu


def gpu_name() -> str | None:
    """The CUDA device's name, or None."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def fast_bf16() -> bool:
    """Whether this hardware multiplies bf16 faster than fp32 (Ampere or later; AMX or AVX512-BF16)."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = torch.cpu
    return any(getattr(cpu, name, bool)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))


def compute_dtype(precision: str) -> torch.dtype:
    """`auto`, `fp32` or `bf16` as a torch dtype."""
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and fast_bf16()) else torch.float32


def autocast(dtype: torch.dtype) -> AbstractContextManager:
    """Autocast to `dtype` on the current device; a no-op for float32."""
    return torch.autocast(device().type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
