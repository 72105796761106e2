"""A graph behind a server: the same contract as a graph in this process. Subclasses say how one request travels.

Histories of ids are padded to few lengths, for a server batches only equal ones.
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

    def padded(self, histories: list[np.ndarray]) -> np.ndarray:
        longest = max((len(history) for history in histories), default=0)
        return pad_left(histories, next((size for size in _LENGTHS if longest <= size), longest))
