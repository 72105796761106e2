"""The protocol's split: stable order, first occurrence of a repeat, leave-one-out.

Sequences are sorted by (user, timestamp, file order), stably; without the file order up to a quarter of MovieLens targets
depend on the sort. The last item of a user is the test target, the one before the validation target; the test history
includes the validation item. Users with fewer than three interactions only train.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import polars as pl

from recommender.data import DataError, Dataset
from recommender.ranking import EVALUATION_K

MIN_EVALUATED = 3
MIN_ITEMS = EVALUATION_K


@dataclass(frozen=True)
class Sequences:
    """Item sequences of all users, concatenated; user u owns `items[offsets[u]:offsets[u + 1]]` (item_index 1..num_items)."""

    user_ids: list[str]
    item_ids: list[str]
    offsets: np.ndarray
    items: np.ndarray
    max_evaluated: int | None = None

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def evaluated_users(self) -> np.ndarray:
        """Users with a validation and a test target; of more than `max_evaluated` that many, always the same."""
        users = np.flatnonzero(self.lengths >= MIN_EVALUATED)
        if self.max_evaluated is None or len(users) <= self.max_evaluated:
            return users
        return np.sort(np.random.default_rng(0).permutation(users)[: self.max_evaluated])

    def user(self, u: int) -> np.ndarray:
        return self.items[self.offsets[u] : self.offsets[u + 1]]

    def train(self, u: int) -> np.ndarray:
        """What may be trained on: all but the last two items (all of them for users who only train)."""
        sequence = self.user(u)
        return sequence[:-2] if len(sequence) >= MIN_EVALUATED else sequence

    def history(self, u: int, part: str) -> np.ndarray:
        """Items before the target of `part` ("validation" or "test")."""
        return self.user(u)[: -2 if part == "validation" else -1]

    def targets(self, users: np.ndarray, part: str) -> np.ndarray:
        """Target item_index of each of `users`."""
        return self.items[self.offsets[users + 1] - (2 if part == "validation" else 1)]

    def train_counts(self) -> np.ndarray:
        """Training interactions of each item_index, int64[num_items + 1]."""
        counts = np.zeros(self.num_items + 1, np.int64)
        for u in range(self.num_users):
            np.add.at(counts, self.train(u), 1)
        return counts

    def targets_sha256(self, part: str = "test") -> str:
        """sha256 over the lines `user_id TAB item_id` of all evaluated users: what a result is comparable by."""
        users = self.evaluated_users
        digest = hashlib.sha256()
        for u, item in zip(users, self.targets(users, part), strict=True):
            digest.update(f"{self.user_ids[u]}\t{self.item_ids[item - 1]}\n".encode())
        return digest.hexdigest()


def build_sequences(dataset: Dataset) -> Sequences:
    """Order, de-duplicate and index the interactions of `dataset`."""
    item_ids = dataset.item_ids
    index = pl.DataFrame({"item_id": item_ids, "item_index": np.arange(1, len(item_ids) + 1, dtype=np.int32)})
    ordered = (
        dataset.interactions.with_row_index("file_order")
        .sort("user_id", "timestamp", "file_order")
        .unique(["user_id", "item_id"], keep="first", maintain_order=True)
        .join(index, on="item_id", how="left", maintain_order="left")
    )
    users = ordered.group_by("user_id", maintain_order=True).len()
    offsets = np.concatenate([[0], np.cumsum(users["len"].to_numpy())]).astype(np.int64)
    return Sequences(users["user_id"].to_list(), item_ids, offsets, ordered["item_index"].to_numpy())


def require_usable(sequences: Sequences) -> None:
    """Stop before any training where nothing could be trained or evaluated."""
    if sequences.num_items <= MIN_ITEMS:
        raise DataError(f"the catalogue has {sequences.num_items} items; ranking the top {MIN_ITEMS} needs more")
    if not len(sequences.evaluated_users):
        raise DataError(f"no user has {MIN_EVALUATED} different items; nothing could be evaluated")
    if not any(len(sequences.train(u)) >= 2 for u in range(sequences.num_users)):
        raise DataError("no user has two items left for training after the last two are set apart")
