"""TensorRT on a CUDA device: both flavours (`tensorrt`, `tensorrt_rtx`) have one Python API.

Memory is held by torch tensors; tied scores may come in another order than ONNX Runtime's (TensorRT promises none).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from foundation.artifact import Unavailable


class TensorRTUnavailable(Unavailable):
    """No TensorRT flavour, or no device to run on; the message says how to get one."""


def import_tensorrt() -> tuple[ModuleType, str]:
    """The installed TensorRT module and its flavour; `tensorrt` where it can be used, else `tensorrt_rtx`."""
    for flavour in ("tensorrt", "tensorrt_rtx"):
        try:
            module: Any = importlib.import_module(flavour)
        except (ImportError, OSError):
            continue
        if hasattr(module, "Builder"):  # without NVIDIA's libraries the package imports, but is empty
            return module, flavour
    raise TensorRTUnavailable(
        "no TensorRT: `make export-trt` installs one by itself; by hand, `pip install -e .[tensorrt-rtx]` builds engines with "
        "or without a GPU, `pip install -e .[tensorrt]` (NVIDIA's index) builds and runs on a CUDA machine"
    )


def keeping_log(trt: ModuleType) -> Any:
    """A logger that keeps what TensorRT reports as an error, in `errors`, for the exception to say."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:  # the name is part of the interface
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(msg)

        def reason(self) -> str:
            return self.errors[0] if self.errors else "it gives no reason"

    return Log()


class TensorRTRecommender:
    """An engine as a recommender."""

    def __init__(self, engine: Path) -> None:
        import torch

        if not torch.cuda.is_available():
            raise TensorRTUnavailable(f"{engine} needs a CUDA device to run; it was built, not run")
        self.trt, self.flavour = import_tensorrt()
        self.log = keeping_log(self.trt)
        self.engine = self.trt.Runtime(self.log).deserialize_cuda_engine(engine.read_bytes())
        if self.engine is None:
            raise TensorRTUnavailable(
                f"{engine} does not load on {torch.cuda.get_device_name()} ({self.log.reason()}); build it for this device"
            )
        self.context = self.engine.create_execution_context()
        self.k = self.engine.get_tensor_shape("item_index")[1]

    def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        import torch

        history = torch.from_numpy(np.ascontiguousarray(history_BL)).cuda()
        outputs = {
            "item_index": torch.empty((len(history_BL), self.k), dtype=self._dtype("item_index"), device="cuda"),
            "score": torch.empty((len(history_BL), self.k), dtype=self._dtype("score"), device="cuda"),
        }
        if not self.context.set_input_shape("history", tuple(history.shape)):
            limits = "export.trt_max_batch and export.trt_max_length"
            raise ValueError(f"the engine was not built for histories of shape {tuple(history.shape)}; see {limits}")
        for name, tensor in {"history": history, **outputs}.items():
            self.context.set_tensor_address(name, tensor.data_ptr())
        stream = torch.cuda.current_stream()
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError(f"TensorRT refused to run the engine: {self.log.reason()}")
        stream.synchronize()
        index_BK, score_BK = outputs["item_index"].long().cpu().numpy(), outputs["score"].float().cpu().numpy()
        return index_BK[:, :k], score_BK[:, :k]

    def _dtype(self, name: str) -> Any:
        import torch

        known = {
            self.trt.int64: torch.int64,
            self.trt.int32: torch.int32,
            self.trt.float32: torch.float32,
            self.trt.float16: torch.float16,
        }
        return known[self.engine.get_tensor_dtype(name)]
