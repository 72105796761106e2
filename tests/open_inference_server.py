"""A server of the Open Inference Protocol over HTTP with ONNX Runtime inside: for tests of the client."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

_NUMPY = {"INT64": np.int64, "FP32": np.float32}


class Server:
    """One graph under the name "shop", on a free port; `max_batch_size` is told as Triton tells it, or not at all."""

    def __init__(self, graph: Path, max_batch_size: int | None = None) -> None:
        session = ort.InferenceSession(str(graph))
        self.batches: list[int] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                told: dict[str, Any] = {
                    "/v2/models/shop": {
                        part: [{"name": entry.name, "shape": [-1, *map(size, entry.shape[1:])]} for entry in entries]
                        for part, entries in (("inputs", session.get_inputs()), ("outputs", session.get_outputs()))
                    },
                    "/v2/models/other": {"inputs": [{"name": "pixels", "shape": [-1, 3]}], "outputs": []},
                }
                if max_batch_size:
                    told["/v2/models/shop/config"] = {"max_batch_size": max_batch_size}
                self.answer(told.get(self.path))

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                feeds = {
                    entry["name"]: np.array(entry["data"], _NUMPY[entry["datatype"]]).reshape(entry["shape"])
                    for entry in asked["inputs"]
                }
                server.batches.append(len(feeds["history"]))
                names = [entry["name"] for entry in asked["outputs"]]
                found = dict(zip(names, session.run(names, feeds), strict=True))
                outputs = [
                    {"name": name, "shape": value.shape, "data": finite(value.ravel().tolist())}
                    for name, value in found.items()
                ]
                self.answer({"outputs": outputs})
                self.close_connection = server.impatient

            def answer(self, told: Any) -> None:
                content = json.dumps(told if told is not None else {"error": "unknown model"}, allow_nan=False).encode()
                self.send_response(200 if told is not None else 404)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.impatient = False
        self.server = ThreadingHTTPServer(("localhost", 0), Handler)
        self.url = f"http://localhost:{self.server.server_port}"

    def __enter__(self) -> Server:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def size(dimension: Any) -> int:
    return dimension if isinstance(dimension, int) else -1


def finite(values: list[float]) -> list[float | None]:
    return [None if value in (float("inf"), float("-inf")) else value for value in values]
