"""Stage: measure every variant, put accuracy, speed and memory into one report (report.json, report.md, raw_speed.json)."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmark.accuracy import Judge, accuracy_figures, comparisons, stage_before
from benchmark.catalogue import sweep_figures, sweep_jobs
from benchmark.ceiling import share_of_limit
from benchmark.config import BenchmarkSection
from benchmark.environment import environment
from benchmark.html import to_html
from benchmark.markdown import to_markdown
from benchmark.runner import Results, failure, measure, round_ratios, run_process, typical
from benchmark.variants import serving_bytes, status_of
from benchmark.worker import Job, judged_sequences
from distill.evaluation import kept_history
from foundation import console
from foundation.artifact import Artifact, ArtifactError, Draft
from recommender.config import StudentSection
from recommender.data import load_dataset
from recommender.evaluate import target_ranks
from recommender.ranking import pad_left
from recommender.split import Sequences

REPORT_SCHEMA = 5
FULL_DEPTH = "full-depth teacher"
CEILING = "machine"
_OVER_ROUNDS = ("throughput_per_s", "peak_rss_bytes", "peak_gpu_bytes", "gpu_process_bytes", "joules_per_history")


@dataclass(frozen=True)
class Row:
    """One variant: its artefacts, one per seed (accuracy uses all of them, speed the first), or why there are none."""

    variant: str
    artifacts: Sequence[Artifact]
    missing: str = ""
    broken: bool = False  # because something failed, not because this machine lacks what it needs
    runtime: str = "onnxruntime"  # of a graph or a student
    endpoint: str = ""  # of a server that answers instead: HOST:PORT/MODEL or http://…
    graph: dict[str, Any] = field(default_factory=dict)  # what graph of a student (`export.graph.ServingGraph`), which engine

    def engines(self) -> list[Row]:
        """This row, and one of every further engine of the same artefact that ran where it was built."""
        further = [file for artifact in self.artifacts for file in artifact.metrics.get("ran", [])[1:]]
        return [
            self,
            *(replace(self, variant=f"{self.variant}-{file.split('.')[0]}", graph={"engine": file}) for file in further),
        ]


@dataclass(frozen=True)
class _Found:
    """Everything that was measured: lists int64[S, U, K] and ranks int64[S, U] by variant, results by variant and round."""

    judge: Judge
    tops: dict[str, np.ndarray]
    ranks: dict[str, np.ndarray]
    results: Results
    limits: dict[str, Any]
    section: BenchmarkSection


def build_report(
    rows: Sequence[Row],
    data: Artifact,
    vector_IZ: np.ndarray,
    llm: Artifact,
    student: StudentSection,
    section: BenchmarkSection,
    draft: Draft,
    trained: Mapping[str, Artifact] | None = None,
) -> None:
    """Measure `rows`, and the LLM of the row "teacher" at full depth, and write the report.

    `vector_IZ` are the items' text vectors (row 0 = padding), by which the diversity of lists is judged; `student` says how
    long histories are, and what is drawn for catalogues of other sizes. The training curves of `trained` are shown.
    """
    max_length = student.max_length
    dataset = load_dataset(data)
    sequences = judged_sequences(dataset, section)
    judge = Judge.of(sequences, dataset.items, vector_IZ)
    histories = draft.checkpoint / "histories.npy"
    np.save(histories, speed_histories(sequences, max_length, section), allow_pickle=False)
    runnable = [row for row in rows if not row.missing and status_of(row.artifacts[0]) == "ok"]
    jobs = {
        row.variant: _job(
            row.artifacts[0],
            section,
            histories=str(histories),
            data=str(data.path),
            top=_top(draft, row, 0),
            runtime=row.runtime,
            endpoint=row.endpoint,
            graph=row.graph,
        )
        for row in runnable
    }
    for row in runnable:
        if row.variant == "teacher":
            jobs[FULL_DEPTH] = _job(row.artifacts[0], section, histories=str(histories), full_depth_llm=str(llm.path))
    jobs[CEILING] = Job("", "", section.model_dump(), ceiling=True)
    sizes, not_drawn = sweep_jobs(student, section, draft.checkpoint) if section.full else ({}, {})
    results = measure(jobs | sizes, section, draft.checkpoint)
    swept = not_drawn | {name: results.pop(name) for name in sizes}
    limits = _limits(results[CEILING])
    tops = _tops(runnable, results, data, section, draft)
    targets = sequences.targets(sequences.evaluated_users, "test")
    ranks = {name: np.stack([target_ranks(top_UK, targets) for top_UK in top_SUK]) for name, top_SUK in tops.items()}
    found = _Found(judge, tops, ranks, results, limits, section)
    report = {
        "schema_version": REPORT_SCHEMA,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "dataset": data.path.parent.name,
        "targets_sha256": sequences.targets_sha256(),
        "environment": environment(section.num_threads),
        "protocol": _protocol(rows, sequences, max_length, section),
        "ceiling": limits,
        "rows": [_row(row, found) for row in rows],
        "catalogue_sweep": sweep_figures(swept),
        "training": {name: kept_history(artifact) for name, artifact in (trained or {}).items()},
        "full_depth_teacher": _full_depth(results.get(FULL_DEPTH, []), llm),
        "comparisons": comparisons(ranks),
        "not_measured": _not_measured(results),
    }
    (draft.path / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False), encoding="utf-8")
    (draft.path / "report.md").write_text(to_markdown(report), encoding="utf-8")
    samples_s = {
        name: [s for result in own for s in result["latency_samples_s"]]
        for name, own in results.items()
        if name != CEILING and not failure(own)
    }
    (draft.path / "report.html").write_text(to_html(report, samples_s), encoding="utf-8")
    (draft.path / "raw_speed.json").write_text(json.dumps(results | swept))
    failed = [row.variant for row in rows if row.broken] + [name for name, own in results.items() if failure(own)]
    too_large = [name for name, own in swept.items() if failure(own)]
    draft.metrics |= {"rows": len(rows), "failed": failed, "failed_sizes": too_large}


def speed_histories(sequences: Sequences, max_length: int, section: BenchmarkSection) -> np.ndarray:
    """Test histories of `num_histories` users (in order, from the start again if there are fewer), int64[N, max_length]."""
    users = np.resize(sequences.evaluated_users, section.num_histories)
    return pad_left([sequences.history(u, "test") for u in users], max_length)


def _job(artifact: Artifact, section: BenchmarkSection, **what: Any) -> Job:
    try:
        artifact.verify()
        digest = artifact.digest
    except ArtifactError:
        digest = ""  # the process will find the same, and its row say so
    return Job(str(artifact.path), digest, section.model_dump(), **what)


def _top(draft: Draft, row: Row, number: int) -> str:
    return str(draft.checkpoint / f"top-{row.variant}-{number}.npy")


def _tops(
    rows: Sequence[Row], results: Results, data: Artifact, section: BenchmarkSection, draft: Draft
) -> dict[str, np.ndarray]:
    """Test lists int64[S, U, K] of every variant that ran: the first seed's by its speed process, the others' by their own."""
    ran = [row for row in rows if not failure(results[row.variant])]
    others = [(row, number) for row in ran for number in range(1, len(row.artifacts))]
    for row, number in console.progress(others, "accuracy of further seeds"):
        what = {"top": _top(draft, row, number), "runtime": row.runtime, "graph": row.graph}
        job = _job(row.artifacts[number], section, data=str(data.path), **what)
        result = run_process(job, section, draft.checkpoint)
        if "error" in result:
            results[row.variant].append(result)
    ran = [row for row in ran if not failure(results[row.variant])]
    return {row.variant: np.stack([np.load(_top(draft, row, n)) for n in range(len(row.artifacts))]) for row in ran}


def _row(row: Row, found: _Found) -> dict[str, Any]:
    if row.missing:
        return {"variant": row.variant, "status": f"{'failed' if row.broken else 'not made'}: {row.missing}"}
    artifact, own = row.artifacts[0], found.results.get(row.variant, [])
    failed = failure(own)
    figures: dict[str, Any] = {
        "variant": row.variant,
        "status": f"failed: {failed}" if failed else status_of(artifact),
        # Of a server nothing is known.
        "artifact_bytes": None if row.endpoint else serving_bytes(artifact, row.graph.get("engine", "")),
        "seeds": [entry.manifest["seed"] for entry in row.artifacts],
        "artifact_digest": artifact.digest,
        "artifact_digests": [entry.digest for entry in row.artifacts],
    }
    if failed or row.variant not in found.ranks:
        return figures
    top_SUK, rank_SU = found.tops[row.variant], found.ranks[row.variant]
    figures |= accuracy_figures(rank_SU) | _speed_figures(own)
    figures |= {"slices": found.judge.by_slice(rank_SU), "beyond_accuracy": found.judge.beyond_accuracy(top_SUK)}
    figures |= _shares(own, figures, found)
    before = stage_before(row.variant)
    if before in found.tops:
        drift = found.judge.drift(top_SUK, rank_SU, found.tops[before], found.ranks[before])
        figures["drift"] = {"from": before, **drift}
    for key, base in (("throughput_vs_teacher", "teacher"), ("throughput_vs_full_depth_teacher", FULL_DEPTH)):
        if found.results.get(base) and not failure(found.results[base]):
            figures[key] = round_ratios(own, found.results[base])
    return figures


def _shares(own: list[dict[str, Any]], figures: dict[str, Any], found: _Found) -> dict[str, Any]:
    """Operations of a single request and of a batch, and what share of the machine's limit each reaches."""
    # What has no graph of ours to count in (bitsandbytes' kernels, engines, packages) multiplies what the stage before does.
    variant, counted = figures["variant"], own
    if not own[0]["operations"][0] or variant.startswith("teacher-"):
        counted = found.results.get(stage_before(variant), own)
    runtime, device = figures["runtime"].split()
    limits = found.limits.get(device)
    if not limits or failure(counted) or not counted[0]["operations"][0]:
        return {}
    calls = {"single": figures["latency_p50_s"], "offline": found.section.batch_size / figures["throughput_per_s"]}
    operations = dict(zip(calls, counted[0]["operations"], strict=True))
    # On a GPU both round the factors of fp32 products to TF32 unless they are told not to, which PyTorch does not.
    rounded = device == "cuda" and runtime in ("onnxruntime", "tensorrt") and figures["precision"] == "fp32"
    precision = "tf32" if rounded else figures["precision"]
    shares = {
        name: share_of_limit(call_s, operations[name], figures["artifact_bytes"], precision, limits)
        for name, call_s in calls.items()
    }
    return {"operations": operations, "share_of_limit": shares}


def _speed_figures(own: list[dict[str, Any]]) -> dict[str, Any]:
    """Percentiles over the samples of all rounds; throughput and memory as medians over rounds."""
    samples = np.concatenate([result["latency_samples_s"] for result in own])
    return {
        **{key: own[0][key] for key in ("runtime", "precision", "num_parameters")},
        **{key: typical(own, key) for key in _OVER_ROUNDS},
        "latency_p50_s": float(np.quantile(samples, 0.5)),
        "latency_p90_s": float(np.quantile(samples, 0.9)),
        "latency_p99_s": float(np.quantile(samples, 0.99)),
        "latency_early_stopping_s": _estimates(own),
        "latency_samples": len(samples),
        "completed_histories": own[0]["completed_histories"],
        **{name: found for name in ("max_rate", "batches") if (found := [result[name] for result in own if result.get(name)])},
    }


def _limits(own: list[dict[str, Any]]) -> dict[str, Any]:
    """The best of each device over the rounds; empty if it could not be measured."""
    if failure(own):
        return {}
    return {
        device: {
            "gemm_per_s": {name: max(r[device]["gemm_per_s"].get(name, 0.0) for r in own) for name in first["gemm_per_s"]},
            "bytes_per_s": max(r[device]["bytes_per_s"] for r in own),
        }
        for device, first in own[0].items()
    }


def _not_measured(results: Results) -> dict[str, str]:
    """What is of no row and could not be measured, and the parts of rows that could not, with the reason."""
    whole = {name: why for name in (CEILING, FULL_DEPTH) if (why := failure(results.get(name, [])))}
    parts = {
        f"{name}, {part}": why
        for name, own in results.items()
        for result in own
        for part, why in result.get("not_measured", {}).items()
    }
    return whole | parts


def _estimates(own: list[dict[str, Any]]) -> dict[str, float]:
    """LoadGen's early-stopping estimates, of the worst of the rounds that had requests enough for one."""
    names = sorted({name for result in own for name in result["latency_estimates_s"]})
    rounds = {name: [r["latency_estimates_s"][name] for r in own if name in r["latency_estimates_s"]] for name in names}
    return {name: max(values) for name, values in rounds.items()}


def _full_depth(own: list[dict[str, Any]], llm: Artifact) -> dict[str, Any]:
    if failed := failure(own):
        return {"error": failed}
    return {"untrained": True, "num_layers": llm.metrics["num_layers"], **_speed_figures(own)} if own else {}


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


def _protocol(rows: Sequence[Row], sequences: Sequences, max_length: int, section: BenchmarkSection) -> dict[str, Any]:
    student = next((row.artifacts for row in rows if row.variant == "student"), [])
    return {
        "accuracy": "leave-one-out, full ranking over the catalogue, seen items filtered, ties to the lower index",
        "users": len(sequences.evaluated_users),
        "seeds": [artifact.manifest["seed"] for artifact in student],
        "speed": f"{section.rounds} rounds of fresh processes in rotated order, histories of {max_length} items, batch 1 for "
        f"latency and {section.batch_size} for throughput, {_threads(section.num_threads)}, K = {section.k}",
    }
