"""A graph behind a server of the Open Inference Protocol, over HTTP: Triton, OpenVINO Model Server, MLServer, KServe.

https://github.com/kserve/open-inference-protocol (version 2, REST): what a model takes is read from `/v2/models/NAME`, and from
Triton's extension `/config` how many requests it takes at once; numbers travel as JSON, over one connection that is kept.
"""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from foundation.artifact import Unavailable
from recommender.runtimes.base import HISTORY, INPUTS, OUTPUTS
from recommender.runtimes.remote import RemoteRecommender

_UNLIMITED = 1 << 16  # of a server that does not say how many it takes


class OpenInferenceRecommender(RemoteRecommender):
    """A model of the server at `url` (http or https); `folder` holds its item_ids.json."""

    def __init__(self, url: str, model: str, folder: Path, timeout_s: float = 5.0) -> None:
        super().__init__(folder / model)
        parts = urlsplit(url)
        connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self.url, self.path = url, f"/v2/models/{model}"
        self.connection = connection(parts.netloc, timeout=timeout_s)
        try:
            told = self._ask("GET", "")
            shapes = {entry["name"]: entry["shape"] for entry in (*told["inputs"], *told["outputs"])}
        except (
            OSError,
            http.client.HTTPException,
            Unavailable,
            ValueError,
            KeyError,
        ) as error:  # or it speaks no such protocol
            raise Unavailable(f"no model {model!r} at {url}: {error}") from None
        if lacking := {HISTORY, *OUTPUTS} - set(shapes):
            raise Unavailable(f"the model {model!r} at {url} is no recommender of ours: it has no {min(lacking)!r}")
        self.k = int(shapes[OUTPUTS[0]][-1])
        self.inputs = {name: int(shapes[name][-1]) for name in sorted(INPUTS - {HISTORY}) if name in shapes}
        try:
            self.max_batch_size = int(self._ask("GET", "/config")["max_batch_size"]) or 1
        except (Unavailable, KeyError):  # of Triton alone
            self.max_batch_size = _UNLIMITED

    def request(self, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        inputs = [
            {
                "name": name,
                "shape": list(feed.shape),
                "datatype": "FP32" if feed.dtype == np.float32 else "INT64",
                "data": feed.ravel().tolist(),
            }
            for name, feed in feeds.items()
        ]
        asked = {"inputs": inputs, "outputs": [{"name": name} for name in OUTPUTS]}
        answer = {entry["name"]: entry for entry in self._ask("POST", "/infer", json.dumps(asked))["outputs"]}
        index, score = (answer[name] for name in OUTPUTS)
        index_BK = np.array(index["data"], np.int64).reshape(index["shape"])
        known = [-np.inf if value is None else value for value in score["data"]]  # JSON has no infinity
        return index_BK, np.array(known, np.float32).reshape(score["shape"])

    def _ask(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        try:
            answer, content = self._send(method, path, body)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):  # closed while nobody asked: once more
            self.connection.close()
            answer, content = self._send(method, path, body)
        if answer.status != http.client.OK:
            said = content.decode(errors="replace")[:200]
            raise Unavailable(f"{self.url}{self.path}{path} answers {answer.status} {answer.reason}: {said}")
        return json.loads(content)

    def _send(self, method: str, path: str, body: str | None) -> tuple[http.client.HTTPResponse, bytes]:
        self.connection.request(method, self.path + path, body, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        return answer, answer.read()
