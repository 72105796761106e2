"""A graph behind Triton Inference Server, over gRPC: the same contract as a graph in this process, by URL.

`recommend_ids` speaks the ids of the catalogue. Histories are padded to few lengths, for Triton batches only equal ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from foundation.artifact import Unavailable
from recommender.ranking import pad_left
from recommender.runtimes.base import HISTORY, INPUTS, OUTPUTS, GraphRecommender

_LENGTHS = (50, 200, 1000)  # longer histories travel as they are


class TritonRecommender(GraphRecommender):
    """A model of a server; `folder` is its folder in the model repository, or any other with its item_ids.json."""

    device, precision = "remote", "the server's"

    def __init__(self, url: str, model: str, folder: Path, timeout_s: float = 5.0) -> None:
        super().__init__(folder / model)
        try:
            import tritonclient.grpc as client
        except (ImportError, RuntimeError):  # without its extra `grpc` the package says so by RuntimeError
            raise Unavailable("Triton's client is not installed; `pip install -e .[triton]`") from None
        self.client, self.model, self.timeout_s = client, model, timeout_s
        self.server = client.InferenceServerClient(url)
        try:
            config: Any = self.server.get_model_config(model, client_timeout=timeout_s)
        except client.InferenceServerException as error:
            raise Unavailable(f"no model {model!r} at {url}: {error.message()}") from None
        self.k = config.config.output[0].dims[0]
        self.inputs = {entry.name: entry.dims[0] for entry in config.config.input if entry.name in INPUTS - {HISTORY}}
        self.max_batch_size = config.config.max_batch_size

    def run(self, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        batch, parts = len(feeds[HISTORY]), []
        for start in range(0, batch, self.max_batch_size):
            parts.append(self._request({name: feed[start : start + self.max_batch_size] for name, feed in feeds.items()}))
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

    def _request(self, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        inputs = []
        for name, feed in feeds.items():
            inputs.append(self.client.InferInput(name, list(feed.shape), "FP32" if feed.dtype == np.float32 else "INT64"))
            inputs[-1].set_data_from_numpy(feed)
        wanted = [self.client.InferRequestedOutput(name) for name in OUTPUTS]
        answer: Any = self.server.infer(self.model, inputs, outputs=wanted, client_timeout=self.timeout_s)
        index_BK, score_BK = (answer.as_numpy(name) for name in OUTPUTS)
        return index_BK, score_BK
