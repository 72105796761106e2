"""A graph behind a server: the same contract as a graph in this process. Subclasses say how one request travels.

`recommend_ids` speaks the ids of the catalogue. Histories are padded to few lengths, for a server batches only equal ones.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from recommender.ranking import pad_left
from recommender.runtimes.base import HISTORY, GraphRecommender

_LENGTHS = (50, 200, 1000)  # longer histories travel as they are


class RemoteRecommender(GraphRecommender):
    """A model of a server. `max_batch_size` is what it takes at once; larger batches are cut."""

    device, precision = "remote", "the server's"
    max_batch_size: int

    @abstractmethod
    def request(self, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """item_index int64[B, K] and score float32[B, K] of one request."""

    def run(self, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        batch, parts = len(feeds[HISTORY]), []
        for start in range(0, batch, self.max_batch_size):
            parts.append(self.request({name: feed[start : start + self.max_batch_size] for name, feed in feeds.items()}))
        index_BK, score_BK = (np.concatenate(part) for part in zip(*parts, strict=True))
        return index_BK, score_BK

    def recommend_ids(self, histories: list[list[str]], k: int) -> list[list[tuple[str, float]]]:
        """(item id, score) of the top `k` for each history of ids, oldest first; unknown ids are skipped."""
        item_ids = self.item_ids()
        index_of = {item_id: number for number, item_id in enumerate(item_ids, 1)}
        known = [np.array([index_of[item_id] for item_id in history if item_id in index_of], int) for history in histories]
        longest = max((len(history) for history in known), default=0)
        length = next((size for size in _LENGTHS if longest <= size), longest)
        index_BK, score_BK = self.recommend(pad_left(known, length), k)
        return [
            [(item_ids[index - 1], float(score)) for index, score in zip(*row, strict=True) if index]
            for row in zip(index_BK, score_BK, strict=True)
        ]
