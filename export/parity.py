"""Parity: do two recommenders rank alike? Judged by what users see (the top K), never by identical bits.

Shapes: N requests, L history, K items.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recommender.beyond import overlap
from recommender.evaluate import target_ranks
from recommender.metrics import ndcg, paired_relative_difference
from recommender.ranking import Recommender, pad_left
from recommender.split import Sequences


class ParityError(RuntimeError):
    """Two runtimes that do not rank alike."""


@dataclass(frozen=True)
class Requests:
    """Histories, and the item each user took next (0 where there is no user)."""

    histories: list[np.ndarray]
    target_N: np.ndarray


@dataclass(frozen=True)
class Lists:
    """What a recommender answered: item_index int64[N, K] and score float32[N, K]."""

    index_NK: np.ndarray
    score_NK: np.ndarray


@dataclass(frozen=True)
class Parity:
    """Mean share of common items in the top K, share of histories with the same order, largest |score difference|.

    `ndcg_at_10` is NDCG@10 over the reference's: relative and ci95, over users drawn as the requests were; None where next to
    nobody's next item is found.
    """

    histories: int
    overlap: float
    same_order: float
    max_score_difference: float
    ndcg_at_10: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def parity_requests(sequences: Sequences, num_requests: int, k: int) -> Requests:
    """Test histories, and first of all hard ones: empty, one item, one item again and again, unknown items, a very long one."""
    users = sequences.evaluated_users
    hard = [
        np.array([], np.int32),
        np.array([1], np.int32),
        np.full(7, 2, np.int32),
        np.array([3, sequences.num_items + 1, 1, 2**31 - 1, -1], np.int64),
        np.arange(1, sequences.num_items - k + 1)[:500],
    ][:num_requests]
    num_drawn = num_requests - len(hard)
    drawn = np.random.default_rng(0).choice(users, num_drawn, replace=len(users) < num_drawn)
    target_N = np.concatenate([np.zeros(len(hard), np.int64), sequences.targets(drawn, "test")])
    return Requests([*hard, *(sequences.history(user, "test") for user in drawn)], target_N)


def answers(recommender: Recommender, requests: Requests, k: int, batch_size: int = 50) -> Lists:
    """The lists a recommender makes for the requests, in batches of them as they come."""
    batches = [
        recommender.recommend(pad_left(requests.histories[start : start + batch_size]), k)
        for start in range(0, len(requests.histories), batch_size)
    ]
    index_NK, score_NK = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return Lists(index_NK, score_NK)


def compare(reference: Lists, other: Lists, requests: Requests) -> Parity:
    """What distinguishes two recommenders' lists."""
    same_NK = reference.score_NK == other.score_NK  # two of -inf are equal, and have no difference
    difference_NK = np.subtract(reference.score_NK, other.score_NK, out=np.zeros_like(reference.score_NK), where=~same_NK)
    if not np.isfinite(difference_NK).all():
        raise ParityError("one gives a score that is no number, or no item where the other has one")
    users = requests.target_N > 0
    gains = [ndcg(target_ranks(lists.index_NK[users], requests.target_N[users]), 10) for lists in (other, reference)]
    return Parity(
        len(requests.histories),
        float(overlap(reference.index_NK, other.index_NK).mean()),
        float((reference.index_NK == other.index_NK).all(axis=1).mean()),
        float(np.abs(difference_NK).max()),
        paired_relative_difference(gains[0], gains[1]) if users.any() else None,
    )
