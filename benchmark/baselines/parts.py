"""What services are often made of: the encoder as an ONNX graph; scores, seen filter and top-K in numpy. Frozen as well."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from benchmark.baselines.plain_graph import PlainEncoder, to_plain_onnx
from recommender.student import Student


class PartsRecommender:
    """The encoder in ONNX Runtime, the rest in numpy."""

    def __init__(self, student: Student, num_threads: int) -> None:
        encoder = PlainEncoder(student)
        model = to_plain_onnx(encoder, student, ("hidden",))
        options = ort.SessionOptions()
        options.intra_op_num_threads = num_threads
        self.session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self.table_ID = encoder.table_ID.numpy()

    def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        hidden_BD = np.asarray(self.session.run(None, {"history": history_BL})[0])
        score_BI = hidden_BD @ self.table_ID.T
        np.put_along_axis(score_BI, history_BL, -np.inf, axis=1)
        score_BI[:, 0] = -np.inf
        top_BK = np.argpartition(score_BI, -k, axis=1)[:, -k:]
        top_score_BK = np.take_along_axis(score_BI, top_BK, axis=1)
        order_BK = np.argsort(-top_score_BK, axis=1)
        return np.take_along_axis(top_BK, order_BK, axis=1), np.take_along_axis(top_score_BK, order_BK, axis=1)
