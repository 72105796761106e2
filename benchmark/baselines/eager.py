"""Graphs in PyTorch: the plain one, ours, and ours as `torch.compile` makes it. Each holds its own graph alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.baselines.plain_graph import PlainGraph
from export.graph import ServingGraph
from foundation.artifact import Artifact
from recommender.student import load_student


class TorchRecommender:
    """A graph in PyTorch."""

    def __init__(self, graph: Callable[[Tensor], tuple[Tensor, Tensor]], num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self.graph = graph

    def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            index_BK, score_BK = self.graph(torch.from_numpy(history_BL))
        return index_BK.numpy()[:, :k], score_BK.numpy()[:, :k]


def open_plain(student: Artifact, num_threads: int, k: int, _: dict[str, Any]) -> TorchRecommender:
    """The plain graph."""
    return TorchRecommender(PlainGraph(load_student(student), k).eval(), num_threads)


def open_ours(student: Artifact, num_threads: int, k: int, options: dict[str, Any]) -> TorchRecommender:
    """The graph that is exported, before it is."""
    return TorchRecommender(ServingGraph(load_student(student), k, **options).eval(), num_threads)


def open_compiled(student: Artifact, num_threads: int, k: int, options: dict[str, Any]) -> TorchRecommender:
    """The same, compiled when it is first called."""
    graph = ServingGraph(load_student(student), k, **options).eval()
    return TorchRecommender(torch.compile(graph, dynamic=True), num_threads)
