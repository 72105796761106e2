"""Ranking metrics from the rank of each user's one target, and their intervals.

Rank 1 is the best; 0 means «not among the top K asked for». With one relevant item NDCG@K = 1 / log2(1 + rank)
(Järvelin and Kekäläinen, 2002), HR@K = [rank <= K], MRR@K = 1 / rank.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NUM_RESAMPLES = 10_000
MIN_HITS = 10


def hit_rate(rank_U: np.ndarray, k: int) -> np.ndarray:
    """Per-user HR@K, float64[U]."""
    return _in_top(rank_U, k).astype(np.float64)


def ndcg(rank_U: np.ndarray, k: int) -> np.ndarray:
    """Per-user NDCG@K, float64[U]."""
    return np.where(_in_top(rank_U, k), 1 / np.log2(1 + np.maximum(rank_U, 1)), 0.0)


def reciprocal_rank(rank_U: np.ndarray, k: int) -> np.ndarray:
    """Per-user MRR@K contribution, float64[U]."""
    return np.where(_in_top(rank_U, k), 1 / np.maximum(rank_U, 1), 0.0)


def summary(rank_U: np.ndarray, k: int = 10) -> dict[str, float]:
    """Means over users of the three metrics at K."""
    values = {"hr": hit_rate(rank_U, k), "ndcg": ndcg(rank_U, k), "mrr": reciprocal_rank(rank_U, k)}
    return {f"{name}_at_{k}": float(value_U.mean()) for name, value_U in values.items()}


def bootstrap_ci(value_U: np.ndarray, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of the mean of `value_U` over resampled users."""
    means = _resampled_means(value_U[:, None], num_resamples, seed)[:, 0]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def paired_relative_difference(
    new_U: np.ndarray, old_U: np.ndarray, num_resamples: int = NUM_RESAMPLES, seed: int = 0, family: int = 1
) -> dict[str, Any] | None:
    """mean(new) / mean(old) - 1 with a 95% interval; the same users are drawn for both sides.

    Of a `family` of comparisons, `ci95_of_family` is wide enough that all of them hold together (Bonferroni).
    None where fewer than MIN_HITS users give `old` anything: a ratio to almost nothing says nothing.
    """
    if new_U.shape != old_U.shape:
        raise ValueError(f"paired comparison of {new_U.shape[0]} with {old_U.shape[0]} users")
    if np.count_nonzero(old_U) < MIN_HITS:
        return None
    means = _resampled_means(np.stack([new_U, old_U], axis=1), num_resamples, seed)
    ratios = np.divide(means[:, 0], means[:, 1], out=np.full(num_resamples, np.inf), where=means[:, 1] > 0)
    tails = {"ci95": 0.025} | ({"ci95_of_family": 0.025 / family} if family > 1 else {})
    intervals = {name: np.quantile(ratios - 1, [tail, 1 - tail]).tolist() for name, tail in tails.items()}
    return {"relative": float(new_U.mean() / old_U.mean() - 1), **intervals}


def _resampled_means(value_UM: np.ndarray, num_resamples: int, seed: int, block: int = 200) -> np.ndarray:
    """Means over users drawn with replacement, float64[num_resamples, M]."""
    rng = np.random.default_rng(seed)
    num_users = value_UM.shape[0]
    blocks = [
        value_UM[rng.integers(0, num_users, (min(block, num_resamples - start), num_users))].mean(axis=1)
        for start in range(0, num_resamples, block)
    ]
    return np.concatenate(blocks)


def _in_top(rank_U: np.ndarray, k: int) -> np.ndarray:
    return (rank_U >= 1) & (rank_U <= k)
