"""The contract of everything that recommends: histories in, top-K out. Light: numpy only."""

from __future__ import annotations

from typing import Protocol

import numpy as np

EVALUATION_K = 20


class Recommender(Protocol):
    """Anything that ranks the catalogue for a batch of histories."""

    def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """item_index int64[B, k] and score float32[B, k], best first; history int64[B, L], 0 = padding in front.

        Where fewer than `k` items are left, the rest is item_index 0 at score -inf.
        """
        ...


def pad_left(histories: list[np.ndarray], length: int | None = None) -> np.ndarray:
    """int64[B, L], oldest first, zeros in front; only the `length` most recent items are kept when it is given."""
    if length is not None:
        histories = [h[-length:] for h in histories]
    width = max((len(h) for h in histories), default=0) if length is None else length
    padded = np.zeros((len(histories), max(width, 1)), np.int64)
    for row, history in zip(padded, histories, strict=True):
        if len(history):
            row[-len(history) :] = history
    return padded


def top_k(score_BI: np.ndarray, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Seen filter and top-k of float32 scores over item_index 0..I (column 0 is padding); ties to the lower index."""
    score_BI = score_BI.astype(np.float32, copy=True)
    np.put_along_axis(score_BI, history_BL, -np.inf, axis=1)
    score_BI[:, 0] = -np.inf
    candidate_BK = np.argpartition(-score_BI, min(k, score_BI.shape[1]) - 1, axis=1)[:, :k]
    worst_B1 = np.take_along_axis(score_BI, candidate_BK, axis=1).min(axis=1, keepdims=True)
    index_BK = np.empty_like(candidate_BK)
    for row, (score_I, worst) in enumerate(zip(score_BI, worst_B1[:, 0], strict=True)):
        contenders = np.flatnonzero(score_I >= worst)
        index_BK[row] = contenders[np.argsort(-score_I[contenders], kind="stable")[:k]]
    score_BK = np.take_along_axis(score_BI, index_BK, axis=1)
    return np.where(score_BK > -np.inf, index_BK, 0).astype(np.int64), score_BK
