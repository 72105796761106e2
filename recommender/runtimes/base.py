"""An exported graph that was opened: what all runtimes share. The graph's own story is in `export/graph.py`.

Shapes: B batch, L history, E items excluded, C candidates, Z dimensions of text vectors, K items returned.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from recommender.ranking import pad_left

GRAPH, ITEM_IDS = "model.onnx", "item_ids.json"
HISTORY, EXCLUDE, CANDIDATES, QUERY = "history", "exclude", "candidates", "query"
INPUTS, OUTPUTS = {HISTORY, EXCLUDE, CANDIDATES, QUERY}, ("item_index", "score")


class GraphRecommender(ABC):
    """A graph in some runtime. Subclasses set the attributes and define `run`.

    `k` is how many items the graph returns, fewer can be asked for; `inputs` are the inputs it has beside the history, of which
    each may be left out of a request: nothing excluded, every item a candidate, nothing asked.
    """

    k: int
    device: str
    precision: str
    inputs: dict[str, int]  # name: second dimension, -1 where it is dynamic

    def __init__(self, graph: Path) -> None:
        self.graph = graph

    @abstractmethod
    def run(self, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """item_index int64[B, K] and score float32[B, K], the caller's to keep."""

    def recommend(self, history_BL: np.ndarray, k: int, **asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Recommender` says; item_index 0 at score -inf where fewer than `k` items are left.

        `exclude` int64[B, E] and `candidates` int64[B, C] are padded with 0, `query` is float32[B, Z].
        """
        if k > self.k:
            raise ValueError(f"the graph returns {self.k} items, {k} were asked for; export it with export.k >= {k}")
        index_BK, score_BK = self.run(self.feeds(history_BL, **asked))
        return index_BK[:, :k], score_BK[:, :k]

    def feeds(self, history_BL: np.ndarray, **asked: np.ndarray) -> dict[str, np.ndarray]:
        """What the runtime is fed: every input of the graph, of its type."""
        found = {HISTORY: np.ascontiguousarray(history_BL, np.int64)}
        return found | self._optional(len(history_BL), asked) if self.inputs or asked else found

    def _optional(self, batch: int, asked: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if unknown := set(asked) - set(self.inputs):
            raise ValueError(
                f"{self.graph} has no input {min(unknown)!r}; it has {', '.join([HISTORY, *self.inputs])}: export it with "
                f"export.inputs = {sorted({*self.inputs, *unknown})}"
            )
        feeds = {}
        for name, size in self.inputs.items():
            if name == QUERY:
                feeds[name] = np.ascontiguousarray(asked.get(name, np.zeros((batch, size))), np.float32)
            elif name == CANDIDATES and name in asked:  # ascending and once each: ties then go to the lower index
                feeds[name] = pad_left([np.unique(row[row > 0]) for row in asked[name]])
            elif name == CANDIDATES:
                feeds[name] = np.tile(np.arange(1, len(self.item_ids()) + 1), (batch, 1))
            else:
                feeds[name] = np.ascontiguousarray(asked.get(name, np.zeros((batch, 1))), np.int64)
        return feeds

    def recommend_ids(
        self,
        histories: Sequence[Sequence[str]],
        k: int,
        *,
        exclude: Sequence[Sequence[str]] | None = None,
        candidates: Sequence[Sequence[str]] | None = None,
        query: np.ndarray | None = None,
    ) -> list[list[tuple[str, float]]]:
        """(item id, score) of the top `k` for each history of ids, oldest first; unknown ids are skipped.

        `exclude` and `candidates` are ids for each history, `query` is float32[B, Z].
        """
        listed = {EXCLUDE: exclude, CANDIDATES: candidates}
        asked = {name: pad_left(self._indices(ids)) for name, ids in listed.items() if ids is not None}
        asked |= {} if query is None else {QUERY: query}
        index_BK, score_BK = self.recommend(self.padded(self._indices(histories)), k, **asked)
        item_ids = self.item_ids()
        return [
            [(item_ids[index - 1], float(score)) for index, score in zip(*row, strict=True) if index]
            for row in zip(index_BK, score_BK, strict=True)
        ]

    def _indices(self, ids: Sequence[Sequence[str]]) -> list[np.ndarray]:
        return [np.array([self.index_of[one] for one in own if one in self.index_of], np.int64) for own in ids]

    def padded(self, histories: list[np.ndarray]) -> np.ndarray:
        """One batch of histories, int64[B, L]."""
        return pad_left(histories)

    def item_ids(self) -> list[str]:
        """The ids of the catalogue, item_index 1 first; they lie beside the graph."""
        return self._ids

    @cached_property
    def _ids(self) -> list[str]:
        return json.loads((self.graph.parent / ITEM_IDS).read_bytes())

    @cached_property
    def index_of(self) -> dict[str, int]:
        """item_index of every id of the catalogue."""
        return {item_id: number for number, item_id in enumerate(self.item_ids(), 1)}
