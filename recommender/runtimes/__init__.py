"""Ways to run an exported graph; METHODS are those that read the ONNX file itself, on the CPU."""

from __future__ import annotations

import importlib
from pathlib import Path

from recommender.runtimes.base import GraphRecommender

METHODS = {
    "onnxruntime": "recommender.runtimes.onnxruntime:OnnxRecommender",
    "onnxruntime-plain": "recommender.runtimes.onnxruntime:PlainOnnxRecommender",
    "openvino": "recommender.runtimes.openvino:OpenVinoRecommender",
    "openvino-fp32": "recommender.runtimes.openvino:OpenVinoFloatRecommender",
}


def open_graph(runtime: str, graph: Path, num_threads: int = 0) -> GraphRecommender:
    """Open `graph` by the runtime of that name; 0 threads = the runtime's own choice."""
    module, name = METHODS[runtime].split(":")
    return getattr(importlib.import_module(module), name)(graph, num_threads)
