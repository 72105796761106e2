"""What the driver says of the GPU (NVML): memory of this process, with what CUDA itself takes, and energy.

None wherever there is no NVIDIA GPU, no nvidia-ml-py, or a driver that does not tell (process numbers of another namespace, a
share of a GPU).
"""

from __future__ import annotations

import os
import sys
from typing import Any


class Meter:
    """Reads the GPU that this process computes on."""

    def __init__(self) -> None:
        torch = sys.modules.get("torch")
        self.nvml: Any = None
        if torch is None or not torch.cuda.is_available():
            return
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
            self.device = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except pynvml.NVMLError:
            return
        self.nvml = pynvml

    def process_bytes(self) -> int | None:
        """Memory that this process holds on the GPU now."""
        if self.nvml is None:
            return None
        try:
            running = self.nvml.nvmlDeviceGetComputeRunningProcesses(self.device)
        except self.nvml.NVMLError:
            return None
        return next((entry.usedGpuMemory for entry in running if entry.pid == os.getpid()), None)

    def joules(self) -> float | None:
        """Energy the whole GPU has used since its driver was loaded."""
        if self.nvml is None:
            return None
        try:
            return self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.device) / 1000
        except self.nvml.NVMLError:
            return None
