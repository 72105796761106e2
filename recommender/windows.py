"""Training windows: every (history, next item) pair of the training part, cut into windows a model reads in one pass.

A window of length n holds n inputs and, shifted by one, n labels. Each epoch cuts a user's sequence at other places (drawn
from the seed and the epoch), so that a position is not always seen with the same, short context. Windows of similar length
share a batch and are padded (on the left) only to the longest of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from recommender.ranking import pad_left
from recommender.split import Sequences

_BUCKET_BATCHES = 16


@dataclass(frozen=True)
class Batch:
    """int64[B, L]; 0 = padding. `position` numbers all training labels of the dataset from 1 (rows of teacher targets)."""

    history_BL: np.ndarray
    label_BL: np.ndarray
    position_BL: np.ndarray
    user_B: np.ndarray  # int64[B]

    def __len__(self) -> int:
        """How many positions it teaches."""
        return int((self.label_BL > 0).sum())


class TrainingWindows:
    """Windows of at most `max_length` labels over the training part of `sequences`."""

    def __init__(self, sequences: Sequences, max_length: int) -> None:
        self.max_length = max_length
        self.sequences = [sequences.train(u) for u in range(sequences.num_users)]
        self.num_labels_U = np.array([max(len(s) - 1, 0) for s in self.sequences])
        self.first_U = np.cumsum(self.num_labels_U) - self.num_labels_U
        self.num_positions = int(self.num_labels_U.sum())

    def epoch(self, epoch: int, batch_size: int, seed: int) -> list[Batch]:
        """Batches of one epoch in random order, the same for the same (epoch, batch_size, seed); each position once."""
        rng = np.random.default_rng((seed, epoch))
        spans = [
            span for u in rng.permutation(len(self.sequences)) for span in self._cut(u, int(rng.integers(self.max_length)))
        ]
        spans = [spans[i] for i in rng.permutation(len(spans))]
        bucket = batch_size * _BUCKET_BATCHES
        ordered = [
            s
            for start in range(0, len(spans), bucket)
            for s in sorted(spans[start : start + bucket], key=lambda s: s[2] - s[1])
        ]
        batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
        return [self._batch(batches[i]) for i in rng.permutation(len(batches))]

    def overlapping(self, batch_size: int) -> Iterator[Batch]:
        """Every position once, in order, each with at least half a window of context where the user has one."""
        step = max(self.max_length // 2, 1)
        rows: list[tuple[int, int, int, int]] = []
        for u, count in enumerate(self.num_labels_U):
            for start in range(0, int(count), step):
                context = max(0, start + step - self.max_length) if start else 0
                rows.append((u, context, start, min(start + step, int(count))))
        for first in range(0, len(rows), batch_size):
            yield self._batch(
                [(u, context, stop) for u, context, _, stop in rows[first : first + batch_size]],
                [r[2] for r in rows[first : first + batch_size]],
            )

    def _cut(self, u: int, offset: int) -> Iterator[tuple[int, int, int]]:
        """(user, first label, last label + 1) of each window; labels are numbered from 0 within the user."""
        count = int(self.num_labels_U[u])
        cuts = [0, *range(offset or self.max_length, count, self.max_length), count]
        return ((u, a, b) for a, b in itertools.pairwise(cuts) if b > a)

    def _batch(self, spans: list[tuple[int, int, int]], label_from: list[int] | None = None) -> Batch:
        histories, labels, positions = [], [], []
        for row, (u, a, b) in enumerate(spans):
            sequence, start = self.sequences[u], a if label_from is None else label_from[row]
            keep = np.arange(a, b) >= start
            histories.append(sequence[a:b])
            labels.append(np.where(keep, sequence[a + 1 : b + 1], 0))
            positions.append(np.where(keep, self.first_U[u] + np.arange(a, b) + 1, 0))
        users = np.array([u for u, _, _ in spans], np.int64)
        return Batch(pad_left(histories), pad_left(labels), pad_left(positions), users)
