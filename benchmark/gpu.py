"""What the driver says of the GPU (NVML): memory of this process, with what CUDA itself takes, and energy.

None wherever there is no NVIDIA GPU, or a driver that does not tell (process numbers of another namespace, a share of a GPU).
"""

from __future__ import annotations

import os
import sys
from typing import Any

import pynvml


class Meter:
    """Reads the GPU that this process computes on."""

    def __init__(self) -> None:
        torch = sys.modules.get("torch")
        self.device: Any = None
        if torch is None or not torch.cuda.is_available():
            return
        try:
            pynvml.nvmlInit()
            uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
            self.device = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except pynvml.NVMLError:
            self.device = None

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
