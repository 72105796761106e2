"""A graph behind Triton Inference Server, over gRPC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from foundation.artifact import Unavailable
from recommender.runtimes.base import HISTORY, INPUTS, OUTPUTS
from recommender.runtimes.remote import RemoteRecommender


class TritonRecommender(RemoteRecommender):
    """A model of a server; `folder` is the model repository (or its copy), in which item_ids.json lies."""

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
        self.max_batch_size = config.config.max_batch_size or 1  # 0: it takes no batches

    def request(self, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        inputs = []
        for name, feed in feeds.items():
            inputs.append(self.client.InferInput(name, list(feed.shape), "FP32" if feed.dtype == np.float32 else "INT64"))
            inputs[-1].set_data_from_numpy(feed)
        wanted = [self.client.InferRequestedOutput(name) for name in OUTPUTS]
        answer: Any = self.server.infer(self.model, inputs, outputs=wanted, client_timeout=self.timeout_s)
        index_BK, score_BK = (answer.as_numpy(name) for name in OUTPUTS)
        return index_BK, score_BK
