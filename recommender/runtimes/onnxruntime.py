"""ONNX Runtime on the CPU, or on CUDA where its provider is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort


class OnnxRecommender:
    """An exported graph; K is fixed in the graph, fewer can be asked for."""

    precision = "fp32"

    def __init__(self, graph: Path, num_threads: int = 0) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [p for p in wanted if p in ort.get_available_providers()]
        self.session = ort.InferenceSession(str(graph), options, providers=providers)
        self.device = "cuda" if self.session.get_providers()[0].startswith("CUDA") else "cpu"
        self.k = self.session.get_outputs()[0].shape[1]

    def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if k > self.k:
            raise ValueError(f"the graph returns {self.k} items, {k} were asked for; export it with export.k >= {k}")
        index_BK, score_BK = self.session.run(None, {"history": history_BL})
        return np.asarray(index_BK)[:, :k], np.asarray(score_BK)[:, :k]
