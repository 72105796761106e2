"""Ways to run an exported graph; METHODS are those that read the ONNX file itself, on the CPU."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol

from recommender.ranking import Recommender

GRAPH = "model.onnx"
METHODS = {
    "onnxruntime": "recommender.runtimes.onnxruntime:OnnxRecommender",
    "openvino": "recommender.runtimes.openvino:OpenVinoRecommender",
}


class GraphRecommender(Recommender, Protocol):
    """A graph that was opened: the K it returns, the device and the precision it computes in."""

    k: int
    device: str
    precision: str


def open_graph(runtime: str, graph: Path, num_threads: int = 0) -> GraphRecommender:
    """Open `graph` by the runtime of that name; 0 threads = the runtime's own choice."""
    module, name = METHODS[runtime].split(":")
    return getattr(importlib.import_module(module), name)(graph, num_threads)
