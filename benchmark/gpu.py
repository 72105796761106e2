"""What the driver says of the GPU (NVML): memory of this process, with what CUDA itself takes, and energy.

None wherever there is no NVIDIA GPU, or a driver that does not tell (process numbers of another namespace, a share of a GPU).
"""

from __future__ import annotations

import os
import sys
from typing import Any

import pynvml


class Meter:
    """Reads the GPU that this process computes on; `on_gpu`: it does."""

    def __init__(self, on_gpu: bool) -> None:
        self.device: Any = None
        if not on_gpu:
            return
        try:
            pynvml.nvmlInit()
            self.device = self._device()
        except pynvml.NVMLError:
            self.device = None

    @staticmethod
    def _device() -> Any:
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
            return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        return pynvml.nvmlDeviceGetHandleByIndex(int(first)) if first.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(first)

    def process_bytes(self) -> int | None:
        """Memory that this process holds on the GPU now."""
        if self.device is None:
            return None
        try:
            running = pynvml.nvmlDeviceGetComputeRunningProcesses(self.device)
        except pynvml.NVMLError:
            return None
        return next((entry.usedGpuMemory for entry in running if entry.pid == os.getpid()), None)

    def joules(self) -> float | None:
        """Energy the whole GPU has used since its driver was loaded."""
        if self.device is None:
            return None
        try:
            return pynvml.nvmlDeviceGetTotalEnergyConsumption(self.device) / 1000
        except pynvml.NVMLError:
            return None
