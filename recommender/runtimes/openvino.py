"""OpenVINO on the CPU: reads the exported ONNX graph as it is, or converted to files of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from foundation.artifact import Unavailable
from recommender.runtimes.base import HISTORY, INPUTS, GraphRecommender

IR, IR_WEIGHTS = "model.xml", "model.bin"


class OpenVinoRecommender(GraphRecommender):
    """An exported graph in the precision the plugin chooses: bfloat16 where the CPU has it."""

    device = "cpu"
    options: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, graph: Path, num_threads: int = 0) -> None:
        super().__init__(graph)
        try:
            import openvino
        except ImportError:
            raise Unavailable("OpenVINO is not installed; `pip install -e .[openvino]`") from None
        options = {"PERFORMANCE_HINT": "LATENCY", **self.options}
        if num_threads:
            options["INFERENCE_NUM_THREADS"] = str(num_threads)
        self.compiled = openvino.Core().compile_model(str(graph), "CPU", options)
        self.request = self.compiled.create_infer_request()
        self.k = self.compiled.outputs[0].get_partial_shape()[1].get_length()
        shapes = {name: port.get_partial_shape()[1] for port in self.compiled.inputs for name in port.names & INPUTS}
        self.inputs = {n: -1 if size.is_dynamic else size.get_length() for n, size in shapes.items() if n != HISTORY}
        hint = str(self.compiled.get_property("INFERENCE_PRECISION_HINT"))
        self.precision = "bf16" if "bfloat16" in hint or "bf16" in hint else "fp32"

    def run(self, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        self.request.infer(feeds)
        index_BK, score_BK = (self.request.get_output_tensor(number).data for number in (0, 1))
        return index_BK.astype(np.int64), score_BK.astype(np.float32)


class OpenVinoFloatRecommender(OpenVinoRecommender):
    """The same held to the graph's own precision, for parity."""

    options = {"INFERENCE_PRECISION_HINT": "f32"}  # noqa: RUF012
