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
from recommender.runtimes.base import HISTORY, INPUTS, OUTPUTS, GraphRecommender


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


class TensorRTRecommender(GraphRecommender):
    """An engine as a recommender; the profile that fits the batch is used."""

    device = "cuda"

    def __init__(self, engine: Path, num_threads: int = 0) -> None:
        import torch

        super().__init__(engine)
        if not torch.cuda.is_available():
            raise TensorRTUnavailable(f"{engine} needs a CUDA device to run; it was built, not run")
        self.precision = engine.stem
        self.trt, self.flavour = import_tensorrt()
        self.log = keeping_log(self.trt)
        self.engine = self.trt.Runtime(self.log).deserialize_cuda_engine(engine.read_bytes())
        if self.engine is None:
            raise TensorRTUnavailable(
                f"{engine} does not load on {torch.cuda.get_device_name()} ({self.log.reason()}); build it for this device"
            )
        self.context = self.engine.create_execution_context()
        self.stream = torch.cuda.Stream()  # of its own: on the default one TensorRT waits for everything else, twice a call
        self.k = self.engine.get_tensor_shape("item_index")[1]
        names = [self.engine.get_tensor_name(number) for number in range(self.engine.num_io_tensors)]
        self.inputs = {name: self.engine.get_tensor_shape(name)[1] for name in names if name in INPUTS - {HISTORY}}
        profiles = range(self.engine.num_optimization_profiles)
        self.largest = [self.engine.get_tensor_profile_shape(HISTORY, number)[2][0] for number in profiles]

    def run(self, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        import torch

        with torch.cuda.stream(self.stream):
            return self._run(feeds)

    def _run(self, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        import torch

        stream, batch = self.stream, len(feeds[HISTORY])
        fitting = next((number for number, largest in enumerate(self.largest) if batch <= largest), len(self.largest) - 1)
        if self.context.active_optimization_profile != fitting:
            self.context.set_optimization_profile_async(fitting, stream.cuda_stream)
        tensors = {name: torch.from_numpy(feed).cuda() for name, feed in feeds.items()}
        for name, tensor in tensors.items():
            if not self.context.set_input_shape(name, tuple(tensor.shape)):
                limits = "export.tensorrt.profiles, max_length and max_listed"
                raise ValueError(f"the engine was not built for {name} of shape {tuple(tensor.shape)}; see {limits}")
        outputs = {name: torch.empty((batch, self.k), dtype=self._dtype(name), device="cuda") for name in OUTPUTS}
        for name, tensor in (tensors | outputs).items():
            self.context.set_tensor_address(name, tensor.data_ptr())
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError(f"TensorRT refused to run the engine: {self.log.reason()}")
        stream.synchronize()
        return outputs["item_index"].long().cpu().numpy(), outputs["score"].float().cpu().numpy()

    def inspect(self) -> str:
        """What TensorRT's own inspector says of the engine: JSON with its layers."""
        return self.engine.create_engine_inspector().get_engine_information(self.trt.LayerInformationFormat.JSON)

    def _dtype(self, name: str) -> Any:
        import torch

        known = {self.trt.int64: torch.int64, self.trt.int32: torch.int32, self.trt.float32: torch.float32}
        return known[self.engine.get_tensor_dtype(name)]
