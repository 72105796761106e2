"""OpenVINO on the CPU: reads the exported ONNX graph as it is.

The plugin chooses the precision by itself: bfloat16 where the CPU has it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from foundation.artifact import Unavailable


class OpenVinoRecommender:
    """An exported graph; K is fixed in the graph, fewer can be asked for."""

    device = "cpu"

    def __init__(self, graph: Path, num_threads: int = 0) -> None:
        try:
            import openvino
        except ImportError:
            raise Unavailable("OpenVINO is not installed; `pip install -e .[openvino]`") from None
        options = {"PERFORMANCE_HINT": "LATENCY"}
        if num_threads:
            options["INFERENCE_NUM_THREADS"] = str(num_threads)
        self.compiled = openvino.Core().compile_model(str(graph), "CPU", options)
        self.request = self.compiled.create_infer_request()
        self.k = self.compiled.outputs[0].get_partial_shape()[1].get_length()
        hint = str(self.compiled.get_property("INFERENCE_PRECISION_HINT"))
        self.precision = "bf16" if "bfloat16" in hint or "bf16" in hint else "fp32"

    def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if k > self.k:
            raise ValueError(f"the graph returns {self.k} items, {k} were asked for; export it with export.k >= {k}")
        self.request.infer({0: np.ascontiguousarray(history_BL, np.int64)})
        index_BK, score_BK = (self.request.get_output_tensor(number).data for number in (0, 1))
        return index_BK[:, :k].astype(np.int64), score_BK[:, :k].astype(np.float32)
