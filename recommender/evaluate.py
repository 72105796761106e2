"""The one evaluator: every number on accuracy comes from here, whatever made the ranking.

Full ranking over the catalogue, the items of the whole history filtered, ties to the lower item_index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from foundation import console
from recommender.ranking import EVALUATION_K, Recommender, pad_left

if TYPE_CHECKING:
    from recommender.split import Sequences

_MAX_PADDED = 1 << 22  # elements of one padded batch: 32 MiB


def evaluate(
    recommender: Recommender, sequences: Sequences, part: str, k: int = EVALUATION_K, batch_size: int = 64
) -> np.ndarray:
    """Rank of each evaluated user's target, int64[U]; 0 where it is not in the top `k`."""
    users = sequences.evaluated_users
    return target_ranks(
        recommend_all(recommender, [sequences.history(u, part) for u in users], k, batch_size), sequences.targets(users, part)
    )


def recommend_all(recommender: Recommender, histories: list[np.ndarray], k: int, batch_size: int = 64) -> np.ndarray:
    """Top-k item_index for every history, int64[len(histories), k]; batches hold histories of similar length."""
    top = np.zeros((len(histories), k), np.int64)
    for rows in console.progress(batches_by_length([len(h) for h in histories], batch_size), "ranking"):
        top[rows] = recommender.recommend(pad_left([histories[r] for r in rows]), k)[0]
    return top


def batches_by_length(lengths: Sequence[int], batch_size: int) -> list[np.ndarray]:
    """Rows of each batch, shortest first; where histories are very long, fewer than `batch_size`."""
    order, batches, start = np.argsort(lengths, kind="stable"), [], 0
    while start < len(order):
        stop = min(start + batch_size, len(order))
        while stop > start + 1 and (stop - start) * lengths[order[stop - 1]] > _MAX_PADDED:
            stop -= 1
        batches.append(order[start:stop])
        start = stop
    return batches


def target_ranks(top_UK: np.ndarray, target_U: np.ndarray) -> np.ndarray:
    """1-based position of each target in its list, 0 if absent."""
    hit_UK = top_UK == target_U[:, None]
    return np.where(hit_UK.any(axis=1), hit_UK.argmax(axis=1) + 1, 0)
