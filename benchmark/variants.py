"""The rows of the benchmark: how each artefact is opened for serving, in the runtime and precision it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from foundation.artifact import Artifact, ArtifactError, opens
from recommender.ranking import EVALUATION_K, Recommender
from recommender.runtimes import open_graph
from recommender.runtimes.base import GRAPH, ITEM_IDS


@dataclass(frozen=True)
class Opened:
    """A variant ready to serve."""

    recommender: Recommender
    runtime: str
    precision: str
    num_parameters: int
    graph: Path | None = None  # the ONNX file, where that is what runs
    remote: bool = False  # a server elsewhere does the work: nothing is known of its memory


@opens
def open_variant(
    artifact: Artifact,
    num_threads: int,
    runtime: str = "onnxruntime",
    k: int = EVALUATION_K,
    graph: Mapping[str, Any] = MappingProxyType({}),
) -> Opened:
    """Open an artefact for serving on `num_threads` threads, and see that it answers; imports only what its kind needs.

    `runtime` is what runs an ONNX graph or a student, which then returns `k` items and is made a graph of these options; of
    several engines they name the file.
    """
    opened = _open(artifact, num_threads, runtime, k, graph)
    opened.recommender.recommend(np.array([[1]]), 1)
    return opened


def open_endpoint(artifact: Artifact, endpoint: str) -> Opened:
    """A server at HOST:PORT/MODEL (Triton's gRPC) or http://HOST:PORT/MODEL; the artefact is the graph that it serves."""
    from recommender.runtimes.open_inference import OpenInferenceRecommender
    from recommender.runtimes.triton import TritonRecommender

    (url, model), folder = endpoint.rsplit("/", 1), artifact.file(ITEM_IDS).parent
    over_http = url.startswith(("http://", "https://"))
    served = (OpenInferenceRecommender if over_http else TritonRecommender)(url, model, folder)
    runtime = "http remote" if over_http else "triton remote"
    return Opened(served, runtime, "served", artifact.metrics["num_parameters"], remote=True)


def _open(artifact: Artifact, num_threads: int, runtime: str, k: int, options: Mapping[str, Any]) -> Opened:
    if artifact.kind in ("popularity", "item-knn"):
        from recommender.baselines import load_baseline

        baseline = load_baseline(artifact)
        return Opened(baseline, "numpy cpu", "fp32", baseline.num_parameters)
    if artifact.kind.startswith("onnx"):
        path = artifact.file(GRAPH)
        graph = open_graph(runtime, path, num_threads)
        precision = artifact.kind.removeprefix("onnx").lstrip("-") or graph.precision
        return Opened(graph, f"{runtime} {graph.device}", precision, artifact.metrics["num_parameters"], path)
    if artifact.kind == "student":
        from benchmark.baselines import open_baseline

        baseline = open_baseline(runtime, artifact, num_threads, k, **options)
        return Opened(baseline, f"{runtime} cpu", "fp32", artifact.metrics.get("num_parameters", 0))
    if artifact.kind == "openvino":
        from recommender.runtimes.openvino import IR, IR_WEIGHTS, OpenVinoRecommender

        artifact.file(IR_WEIGHTS)  # verified before the other, which refers to it, is read
        graph = OpenVinoRecommender(artifact.file(IR), num_threads)
        return Opened(graph, "openvino cpu", graph.precision, artifact.metrics["num_parameters"])
    if artifact.kind == "tensorrt":
        from recommender.runtimes.tensorrt import TensorRTRecommender

        engine = TensorRTRecommender(artifact.file(options.get("engine") or _first_engine(artifact)))
        return Opened(engine, "tensorrt cuda", engine.precision, artifact.metrics["num_parameters"])
    if artifact.kind.partition("-")[0] == "teacher":
        return _open_teacher(artifact, num_threads)
    raise ArtifactError(f"{artifact.path} is a {artifact.kind!r} artefact, which cannot be served")


def open_full_depth(teacher: Artifact, llm: Artifact, num_threads: int) -> Opened:
    """The teacher's LLM with all its layers and random weights: speed and parameters only."""
    import torch
    from safetensors import safe_open

    from distill.config import TeacherSection
    from distill.teacher import HEAD, full_depth_teacher, serving_teacher

    torch.set_num_threads(num_threads)
    with safe_open(teacher.file(HEAD), "np") as head:
        text_IZ = head.get_tensor("text_IZ")
        tokens_IT = head.get_tensor("tokens_IT") if "tokens_IT" in head.keys() else None  # noqa: SIM118, it is no mapping
    section = TeacherSection.model_validate(teacher.recipe["teacher"])
    return _opened_teacher(serving_teacher(full_depth_teacher(llm, text_IZ, section, tokens_IT)))


def _first_engine(artifact: Artifact) -> str:
    """The first that ran where the engines were built, else the first."""
    return artifact.metrics.get("ran", [engine["file"] for engine in artifact.metrics["engines"]])[0]


def serving_bytes(artifact: Artifact, engine: str = "") -> int:
    """Bytes of what serving reads: ids, kept ranks and training curves left out, and of several engines the one that runs."""
    left_out = {"item_ids.json", "ranks.parquet", "training.parquet", "items.parquet", "quarantine.parquet"}
    files = {name: entry["bytes"] for name, entry in artifact.manifest["files"].items() if name not in left_out}
    if artifact.kind == "student":  # the checkpoint holds item texts as well, which are folded into the table when it is opened
        return 4 * artifact.metrics["num_parameters"]
    if artifact.kind == "tensorrt":
        return files[engine or _first_engine(artifact)]
    return sum(files.values())


def status_of(artifact: Artifact) -> str:
    """`ok`, or why the artefact cannot be measured here."""
    return artifact.metrics["status"] if artifact.kind == "tensorrt" and "ran" not in artifact.metrics else "ok"


def _open_teacher(artifact: Artifact, num_threads: int) -> Opened:
    import torch

    from distill.teacher import load_teacher, serving_teacher

    torch.set_num_threads(num_threads)
    return _opened_teacher(serving_teacher(load_teacher(artifact)), artifact.kind.removeprefix("teacher").lstrip("-"))


def _opened_teacher(recommender, weights: str = "") -> Opened:
    compute = {"torch.bfloat16": "bf16", "torch.float32": "fp32"}[str(recommender.dtype)]
    precision = f"{weights} weights, {compute}" if weights else compute
    return Opened(recommender, f"pytorch {recommender.table_IE.device.type}", precision, recommender.teacher.num_parameters)
