"""The exported graph as a package of AOTInductor, compiled for this processor."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmark.baselines import apart
from foundation.artifact import Artifact, sha256_file
from recommender.runtimes.aotinductor import PACKAGE, AotInductorRecommender


def open_packaged(student: Artifact, num_threads: int, k: int, options: dict[str, Any]) -> AotInductorRecommender:
    """Compile it apart, and load it."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / PACKAGE
        apart(_compile, student, k, options, package)
        return AotInductorRecommender(package, sha256_file(package), num_threads)


def _compile(student: Artifact, k: int, options: dict[str, Any], package: Path) -> None:
    from export.aotinductor import compile_graph
    from export.graph import ServingGraph
    from recommender.student import load_student

    compile_graph(ServingGraph(load_student(student), k, **options).eval(), [], package)
