"""How cost grows with the catalogue: the student's architecture over drawn items, as a graph of its own for every size.

Speed asks nothing of the weights, so none are trained and nothing is said of accuracy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from benchmark.config import BenchmarkSection
from benchmark.runner import Results, failure, run_process, typical
from benchmark.worker import Job
from export.graph import ServingGraph
from export.onnx_graph import serving_model
from foundation.artifact import Artifact, Draft, make
from recommender.config import StudentSection
from recommender.runtimes.base import GRAPH, ITEM_IDS
from recommender.student import Student

SIZES = (1_000, 10_000, 100_000, 1_000_000)
_OPSET = 21


def drawn_student(section: StudentSection, num_items: int) -> Student:
    """A student without text whose weights are those it would start training from."""
    torch.manual_seed(0)
    return Student(section, num_items, None).eval()


def drawn_graph(student: Student, graph: onnx.ModelProto, out: Path) -> Artifact:
    """`graph`, made of a drawn student, as an artefact of exported graphs."""

    def build(draft: Draft) -> None:
        onnx.save(graph, draft.path / GRAPH)
        (draft.path / ITEM_IDS).write_text(json.dumps([str(item) for item in range(1, len(student.items.id_ID))]))
        draft.metrics["num_parameters"] = student.num_parameters

    return make(out, "onnx", recipe={}, inputs={}, build=build)


def sweep_jobs(section: StudentSection, benchmark: BenchmarkSection, folder: Path) -> tuple[dict[str, Job], Results]:
    """A job for every size of catalogue, by name, or a result that says why there is none.

    Each graph is drawn in a process of its own: one of 2 GiB cannot be, and what lacks the memory must not end the rest.
    """
    jobs, failed = {}, {}
    plain = benchmark.model_copy(update={"full": False}).model_dump()
    for num_items in SIZES:
        drawn = {"student": section.model_dump(mode="json"), "num_items": num_items, "folder": str(folder)}
        made = run_process(Job("", "", plain, drawn=drawn), benchmark, folder)
        if "error" in made:
            failed[_name(num_items)] = [made]
        else:
            jobs[_name(num_items)] = Job(made["path"], made["digest"], plain, histories=made["histories"])
    return jobs, failed


def draw(benchmark: BenchmarkSection, student: Mapping[str, Any], num_items: int, folder: str) -> dict[str, str]:
    """A student of this section over `num_items` drawn items, and histories for it: {"path", "digest", "histories"}."""
    section, histories = StudentSection.model_validate(student), Path(folder) / f"histories-{num_items}.npy"
    drawn = drawn_student(section, num_items)
    model = serving_model(ServingGraph(drawn, benchmark.k), [], _OPSET, "")
    made = drawn_graph(drawn, model, Path(folder) / f"items-{num_items}")
    shape = (benchmark.num_histories, section.max_length)
    np.save(histories, np.random.default_rng(0).integers(1, num_items + 1, shape), allow_pickle=False)
    return {"path": str(made.path), "digest": made.digest, "histories": str(histories)}


def sweep_figures(results: Results) -> list[dict[str, Any]]:
    """What the jobs of `sweep_jobs` came to, by size; nothing where none was asked for."""
    found = []
    for num_items in SIZES:
        if not (own := results.get(_name(num_items), [])):
            continue
        if failed := failure(own):
            found.append({"num_items": num_items, "status": f"failed: {failed}"})
            continue
        figures = {
            "latency_p50_s": float(np.median(np.concatenate([result["latency_samples_s"] for result in own]))),
            **{key: typical(own, key) for key in ("throughput_per_s", "peak_rss_bytes")},
        }
        found.append({"num_items": num_items, "status": "ok", **figures})
    return found


def _name(num_items: int) -> str:
    return f"catalogue of {num_items}"
