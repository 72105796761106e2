"""What services are often made of: the encoder as an ONNX graph; scores, seen filter and top-K in numpy. Frozen as well."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from benchmark.baselines import apart
from foundation.artifact import Artifact


class PartsRecommender:
    """The encoder (an ONNX graph's bytes) in ONNX Runtime, the rest in numpy over the item table float32[I + 1, D]."""

    def __init__(self, encoder: bytes, table_ID: np.ndarray, num_threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = num_threads
        self.session = ort.InferenceSession(encoder, options, providers=["CPUExecutionProvider"])
        self.table_ID = table_ID

    def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        hidden_BD = np.asarray(self.session.run(None, {"history": history_BL})[0])
        score_BI = hidden_BD @ self.table_ID.T
        np.put_along_axis(score_BI, history_BL, -np.inf, axis=1)
        score_BI[:, 0] = -np.inf
        top_BK = np.argpartition(score_BI, -k, axis=1)[:, -k:]
        top_score_BK = np.take_along_axis(score_BI, top_BK, axis=1)
        order_BK = np.argsort(-top_score_BK, axis=1)
        return np.take_along_axis(top_BK, order_BK, axis=1), np.take_along_axis(top_score_BK, order_BK, axis=1)


def open_parts(student: Artifact, num_threads: int, k: int, options: dict[str, Any]) -> PartsRecommender:
    """Export the encoder apart, and open it; it has none of our graph's `options`, and returns as many items as asked for."""
    return PartsRecommender(*apart(_export, student), num_threads)


def _export(student: Artifact) -> tuple[bytes, np.ndarray]:
    from benchmark.baselines.plain_graph import PlainEncoder, to_plain_onnx
    from recommender.student import load_student

    loaded = load_student(student)
    encoder = PlainEncoder(loaded)
    return to_plain_onnx(encoder, loaded, ("hidden",)).SerializeToString(), encoder.table_ID.numpy()
