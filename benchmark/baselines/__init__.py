"""What the exported graph is compared with for speed: plain graphs, graphs in parts, and its own without ONNX.

Each is a recommender made of a student's artefact, by name in METHODS: the benchmark's runner measures it as it does a variant.
Exporters and compilers run in a process of their own, since what they take is no memory of serving.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from foundation.artifact import Artifact
from recommender.ranking import Recommender

METHODS = {
    "plain-pytorch": "benchmark.baselines.eager:open_plain",
    "pytorch": "benchmark.baselines.eager:open_ours",
    "pytorch-compiled": "benchmark.baselines.eager:open_compiled",
    "aotinductor": "benchmark.baselines.packaged:open_packaged",
    "parts": "benchmark.baselines.parts:open_parts",
}
T = TypeVar("T")


def open_baseline(method: str, student: Artifact, num_threads: int, k: int, **options: Any) -> Recommender:
    """The recommender `method` makes of a student; `options` are `ServingGraph`'s, of those that are one."""
    module, name = METHODS[method].split(":")
    return getattr(importlib.import_module(module), name)(student, num_threads, k, options)


def apart(build: Callable[..., T], *arguments: Any) -> T:
    """What `build` returns, called in a process of its own."""
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(build, *arguments).result()
    except BrokenProcessPool:
        raise MemoryError(f"the process of {build.__module__} ended without a word, most likely for want of memory") from None
