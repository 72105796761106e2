"""What the exported graph is compared with for speed: plain graphs, graphs in parts, and its own without ONNX.

Each is a recommender made of a student's artefact, by name in METHODS: the benchmark's runner measures it as it does a variant.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.baselines.parts import PartsRecommender
from benchmark.baselines.plain_graph import PlainGraph
from export.aotinductor import compile_graph
from export.graph import ServingGraph
from foundation.artifact import Artifact, sha256_file
from recommender.ranking import Recommender
from recommender.runtimes.aotinductor import AotInductorRecommender
from recommender.student import Student, load_student


def open_baseline(method: str, student: Artifact, num_threads: int, k: int) -> Recommender:
    """The recommender `method` makes of a student."""
    torch.set_num_threads(num_threads)
    return METHODS[method](load_student(student), num_threads, k)


class TorchRecommender:
    """A graph in PyTorch."""

    def __init__(self, graph: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.graph = graph

    def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            index_BK, score_BK = self.graph(torch.from_numpy(history_BL))
        return index_BK.numpy()[:, :k], score_BK.numpy()[:, :k]


def _eager(graph: type[nn.Module]) -> Callable[[Student, int, int], Recommender]:
    return lambda student, num_threads, k: TorchRecommender(graph(student, k).eval())


def _compiled(student: Student, num_threads: int, k: int) -> Recommender:
    return TorchRecommender(torch.compile(ServingGraph(student, k).eval(), dynamic=True))


def _packaged(student: Student, num_threads: int, k: int) -> Recommender:
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "model.pt2"
        compile_graph(ServingGraph(student, k), [], package)
        return AotInductorRecommender(package, sha256_file(package), num_threads)


METHODS: dict[str, Callable[[Student, int, int], Recommender]] = {
    "plain-pytorch": _eager(PlainGraph),
    "pytorch": _eager(ServingGraph),
    "pytorch-compiled": _compiled,
    "aotinductor": _packaged,
    "parts": lambda student, num_threads, k: PartsRecommender(student, num_threads),
}
