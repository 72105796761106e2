"""What the exported graph is compared with for speed: plain graphs, graphs in parts, and its own without ONNX.

Each is a recommender made of a student's artefact, by name in METHODS: the benchmark's runner measures it as it does a variant.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.baselines.parts import PartsRecommender
from benchmark.baselines.plain_graph import PlainGraph
from export.aotinductor import compile_graph
from export.graph import ServingGraph
from foundation.artifact import Artifact, sha256_file
from recommender.ranking import Recommender
from recommender.runtimes.aotinductor import AotInductorRecommender
from recommender.student import Student, load_student


def open_baseline(method: str, student: Artifact, num_threads: int, k: int, **options: Any) -> Recommender:
    """The recommender `method` makes of a student; `options` are `ServingGraph`'s, of those that are one."""
    torch.set_num_threads(num_threads)
    return METHODS[method](load_student(student), num_threads, k, options)


class TorchRecommender:
    """A graph in PyTorch."""

    def __init__(self, graph: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.graph = graph

    def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            index_BK, score_BK = self.graph(torch.from_numpy(history_BL))
        return index_BK.numpy()[:, :k], score_BK.numpy()[:, :k]


def _ours(student: Student, k: int, options: dict[str, Any]) -> ServingGraph:
    return ServingGraph(student, k, **options).eval()


def _packaged(student: Student, num_threads: int, k: int, options: dict[str, Any]) -> Recommender:
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "model.pt2"
        compile_graph(_ours(student, k, options), [], package)
        return AotInductorRecommender(package, sha256_file(package), num_threads)


METHODS: dict[str, Callable[[Student, int, int, dict[str, Any]], Recommender]] = {  # each holds its own graph alone
    "plain-pytorch": lambda student, _, k, __: TorchRecommender(PlainGraph(student, k).eval()),
    "pytorch": lambda student, _, k, options: TorchRecommender(_ours(student, k, options)),
    "pytorch-compiled": lambda student, _, k, options: TorchRecommender(
        torch.compile(_ours(student, k, options), dynamic=True)
    ),
    "aotinductor": _packaged,
    "parts": lambda student, num_threads, *_: PartsRecommender(student, num_threads),
}
