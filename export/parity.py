"""Parity: do two recommenders rank alike? Judged by what users see (the top K), never by identical bits."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from export.config import ExportSection
from recommender.beyond import overlap
from recommender.ranking import Recommender, pad_left
from recommender.split import Sequences


class ParityError(RuntimeError):
    """Two runtimes that do not rank alike."""


@dataclass(frozen=True)
class Parity:
    """Mean share of common items in the top K, share of histories with the same order, largest |score difference|."""

    histories: int
    overlap: float
    same_order: float
    max_score_difference: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def parity_histories(sequences: Sequences, section: ExportSection) -> list[np.ndarray]:
    """Test histories, topped up with hard ones: empty, one item, every item the same, longer than the encoder reads."""
    users = sequences.evaluated_users
    hard = [
        np.array([], np.int32),
        np.array([1], np.int32),
        np.full(7, 2, np.int32),
        np.arange(1, sequences.num_items - section.k + 1)[:500],
    ]
    drawn = np.random.default_rng(0).choice(users, section.parity_histories, replace=len(users) < section.parity_histories)
    return [*hard, *(sequences.history(u, "test") for u in drawn)][: section.parity_histories]


def compare(reference: Recommender, other: Recommender, histories: list[np.ndarray], k: int, batch_size: int = 50) -> Parity:
    """Run both on the same batches."""
    overlaps, same, difference = [], [], 0.0
    for start in range(0, len(histories), batch_size):
        history_BL = pad_left(histories[start : start + batch_size])
        (index_BK, score_BK), (other_index_BK, other_score_BK) = (
            reference.recommend(history_BL, k),
            other.recommend(history_BL, k),
        )
        overlaps += overlap(index_BK, other_index_BK).tolist()
        same += (index_BK == other_index_BK).all(axis=1).tolist()
        difference = max(difference, float(np.abs(score_BK - other_score_BK).max()))
    return Parity(len(histories), float(np.mean(overlaps)), float(np.mean(same)), difference)


def require_overlap(parity: Parity, min_overlap: float, new: str, reference: str) -> None:
    """Fail when two runtimes do not rank alike."""
    if parity.overlap < min_overlap:
        raise ParityError(
            f"{new} and {reference} agree on only {parity.overlap:.4f} of the top items (export.min_overlap = {min_overlap}, "
            f"largest score difference {parity.max_score_difference:.2e}); nothing was written"
        )
