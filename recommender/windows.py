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
    """int64[B, L]; 0 = padding.

    `position` numbers all training labels of the dataset from 1 (rows of teacher targets), then the ends of its histories,
    whose label is 0.
    """

    history_BL: np.ndarray
    label_BL: np.ndarray
    position_BL: np.ndarray
    user_B: np.ndarray  # int64[B]

    def __len__(self) -> int:
        """How many positions it teaches."""
        return int((self.position_BL > 0).sum())


class TrainingWindows:
    """Windows of at most `max_length` labels over the training part of `sequences`.

    With `ends` the end of each user's training part is a position as well: what comes next is not known there, so that it is
    for a teacher only.
    """

    def __init__(self, sequences: Sequences, max_length: int, ends: bool = False) -> None:
        self.max_length = max_length
        self.sequences = [sequences.train(u) for u in range(sequences.num_users)]
        self.num_labels_U = np.array([max(len(s) - 1, 0) for s in self.sequences])
        self.first_U = np.cumsum(self.num_labels_U) - self.num_labels_U
        self.num_labels = int(self.num_labels_U.sum())
        has_end_U = np.array([ends and len(s) > 0 for s in self.sequences])
        self.end_U = np.where(has_end_U, self.num_labels + np.cumsum(has_end_U), 0)  # its position, 0 where there is none
        self.num_positions = self.num_labels + int(has_end_U.sum())

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
        """Every position once, in order, with at least half a window of context where its user has one; an end with all."""
        step = max(self.max_length // 2, 1)
        rows: list[tuple[int, int, int, int]] = []
        for u, count in enumerate(self.num_labels_U):
            for start in range(0, int(count), step):
                context = max(0, start + step - self.max_length) if start else 0
                rows.append((u, context, start, min(start + step, int(count))))
        for u in np.flatnonzero(self.end_U):
            last = int(self.num_labels_U[u])
            rows.append((int(u), max(0, last + 1 - self.max_length), last, last + 1))
        for first in range(0, len(rows), batch_size):
            yield self._batch(
                [(u, context, stop) for u, context, _, stop in rows[first : first + batch_size]],
                [r[2] for r in rows[first : first + batch_size]],
            )

    def _cut(self, u: int, offset: int) -> Iterator[tuple[int, int, int]]:
        """(user, first label, last label + 1) of each window; labels are numbered from 0 within the user, an end after them."""
        count = int(self.num_labels_U[u]) + int(self.end_U[u] > 0)
        cuts = [0, *range(offset or self.max_length, count, self.max_length), count]
        return ((u, a, b) for a, b in itertools.pairwise(cuts) if b > a)

    def _batch(self, spans: list[tuple[int, int, int]], label_from: list[int] | None = None) -> Batch:
        histories, labels, positions = [], [], []
        for row, (u, a, b) in enumerate(spans):
            sequence, start = self.sequences[u], a if label_from is None else label_from[row]
            keep = np.arange(a, b) >= start
            at = np.arange(a, b)
            histories.append(sequence[a:b])
            labels.append(np.where(keep, np.append(sequence, 0)[a + 1 : b + 1], 0))
            numbers = np.where(at < self.num_labels_U[u], self.first_U[u] + at + 1, self.end_U[u])
            positions.append(np.where(keep, numbers, 0))
        users = np.array([u for u, _, _ in spans], np.int64)
        return Batch(pad_left(histories), pad_left(labels), pad_left(positions), users)
