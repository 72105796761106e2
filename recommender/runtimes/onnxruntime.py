"""ONNX Runtime on the CPU, or on CUDA where its provider is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from recommender.runtimes.base import HISTORY, GraphRecommender


class OnnxRecommender(GraphRecommender):
    """An exported graph, as fast as ONNX Runtime makes it."""

    precision = "fp32"
    optimization = ort.GraphOptimizationLevel.ORT_ENABLE_ALL

    def __init__(self, graph: Path, num_threads: int = 0) -> None:
        super().__init__(graph)
        options = ort.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3
        options.graph_optimization_level = self.optimization
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [p for p in wanted if p in ort.get_available_providers()]
        self.session = ort.InferenceSession(str(graph), options, providers=providers)
        self.device = "cuda" if self.session.get_providers()[0].startswith("CUDA") else "cpu"
        self.k = self.session.get_outputs()[0].shape[1]
        shapes = {entry.name: entry.shape for entry in self.session.get_inputs() if entry.name != HISTORY}
        self.inputs = {name: shape[1] if isinstance(shape[1], int) else -1 for name, shape in shapes.items()}

    def run(self, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        index_BK, score_BK = self.session.run(None, feeds)
        return np.asarray(index_BK), np.asarray(score_BK)


class PlainOnnxRecommender(OnnxRecommender):
    """The graph as it is written, node by node: what the optimizer makes of it is compared with this.

    It also runs what has no fused kernel on a CPU, such as fp8.
    """

    optimization = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
