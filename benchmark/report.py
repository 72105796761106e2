"""Stage: measure every variant, put accuracy, speed and memory into one report (report.json, report.md, raw_speed.json)."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.config import BenchmarkSection
from benchmark.environment import environment
from benchmark.markdown import to_markdown
from benchmark.runner import Results, failure, measure, round_ratios, run_process
from benchmark.variants import serving_bytes, status_of
from benchmark.worker import Job
from foundation import console
from foundation.artifact import Artifact, ArtifactError, Draft
from recommender.data import load_dataset
from recommender.metrics import bootstrap_ci, hit_rate, ndcg, paired_relative_difference
from recommender.ranking import pad_left
from recommender.split import Sequences, build_sequences

REPORT_SCHEMA = 1
FULL_DEPTH = "full-depth teacher"
COMPARISONS = (
    ("control-text", "control-id"),
    ("teacher", "control-id"),
    ("teacher", "control-text"),
    ("student", "control-id"),
    ("student", "control-text"),
    ("student", "teacher"),
    ("student-int8", "student"),
    ("student-int4", "student"),
    ("teacher-int8", "teacher"),
    ("teacher-nf4", "teacher"),
)


@dataclass(frozen=True)
class Row:
    """One variant: its artefacts, one per seed (accuracy uses all of them, speed the first), or why there are none."""

    variant: str
    artifacts: Sequence[Artifact]
    missing: str = ""


def build_report(
    rows: Sequence[Row], data: Artifact, llm: Artifact, max_length: int, section: BenchmarkSection, draft: Draft
) -> None:
    """Measure `rows`, and the LLM of the row "teacher" at full depth, and write the report."""
    sequences = build_sequences(load_dataset(data))
    histories = draft.checkpoint / "histories.npy"
    np.save(histories, speed_histories(sequences, max_length, section), allow_pickle=False)
    runnable = [row for row in rows if not row.missing and status_of(row.artifacts[0]) == "ok"]
    jobs = {row.variant: _job(row.artifacts[0], section, histories=str(histories), data=str(data.path)) for row in runnable}
    for row in runnable:
        if row.variant == "teacher":
            jobs[FULL_DEPTH] = _job(row.artifacts[0], section, histories=str(histories), full_depth_llm=str(llm.path))
    results = measure(jobs, section, draft.checkpoint)
    ranks = _ranks(runnable, results, data, section, draft.checkpoint)
    report = {
        "schema_version": REPORT_SCHEMA,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "dataset": data.path.parent.name,
        "targets_sha256": sequences.targets_sha256(),
        "environment": environment(section.num_threads),
        "protocol": _protocol(rows, sequences, max_length, section),
        "rows": [_row(row, ranks.get(row.variant), results) for row in rows],
        "full_depth_teacher": _full_depth(results.get(FULL_DEPTH, []), llm),
        "comparisons": comparisons(ranks),
    }
    (draft.path / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False))
    (draft.path / "report.md").write_text(to_markdown(report))
    speed = {name: [{k: v for k, v in result.items() if k != "ranks"} for result in own] for name, own in results.items()}
    (draft.path / "raw_speed.json").write_text(json.dumps(speed))
    draft.metrics |= {"rows": len(rows), "failed": [name for name in results if failure(results[name])]}


def speed_histories(sequences: Sequences, max_length: int, section: BenchmarkSection) -> np.ndarray:
    """Test histories of `num_histories` users (in order, from the start again if there are fewer), int64[N, max_length]."""
    users = np.resize(sequences.evaluated_users, section.num_histories)
    return pad_left([sequences.history(u, "test") for u in users], max_length)


def comparisons(ranks: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Paired relative differences of NDCG@10 between variants, per-user means over matched seeds; ranks are int64[S, U]."""
    found = {}
    for new, old in COMPARISONS:
        if new not in ranks or old not in ranks:
            continue
        new_SU, old_SU = ndcg(ranks[new], 10), ndcg(ranks[old], 10)
        if difference := paired_relative_difference(new_SU.mean(axis=0), old_SU.mean(axis=0)):
            per_seed = new_SU.mean(axis=1) / np.maximum(old_SU.mean(axis=1), 1e-12) - 1
            found[f"{new} over {old}"] = {**difference, "per_seed": per_seed.tolist()}
    return found


def accuracy_figures(rank_SU: np.ndarray) -> dict[str, Any]:
    """HR@10 and NDCG@10 with its interval, from test ranks of all seeds."""
    ndcg_SU = ndcg(rank_SU, 10)
    return {
        "hr_at_10": float(hit_rate(rank_SU, 10).mean()),
        "ndcg_at_10": float(ndcg_SU.mean()),
        "ndcg_at_10_ci95": list(bootstrap_ci(ndcg_SU.mean(axis=0))),
        "ndcg_at_10_per_seed": ndcg_SU.mean(axis=1).tolist(),
    }


def _job(artifact: Artifact, section: BenchmarkSection, **what: str) -> Job:
    try:
        artifact.verify()
        digest = artifact.digest
    except ArtifactError:
        digest = ""  # the process will find the same, and its row say so
    return Job(str(artifact.path), digest, section.model_dump(), **what)


def _ranks(
    rows: Sequence[Row], results: Results, data: Artifact, section: BenchmarkSection, folder: Path
) -> dict[str, np.ndarray]:
    """Test ranks int64[S, U] of every variant that ran: the first seed's from its speed process, the others' from their own."""
    ranks = {row.variant: [results[row.variant][0]["ranks"]] for row in rows if not failure(results[row.variant])}
    others = [(row.variant, artifact) for row in rows if row.variant in ranks for artifact in row.artifacts[1:]]
    for variant, artifact in console.progress(others, "accuracy of further seeds"):
        result = run_process(_job(artifact, section, data=str(data.path)), section, folder)
        results[variant].append(result) if "error" in result else ranks[variant].append(result["ranks"])
    return {variant: np.array(rank_SU) for variant, rank_SU in ranks.items() if not failure(results[variant])}


def _row(row: Row, rank_SU: np.ndarray | None, results: Results) -> dict[str, Any]:
    if row.missing:
        return {"variant": row.variant, "status": f"not made: {row.missing}"}
    artifact, own = row.artifacts[0], results.get(row.variant, [])
    failed = failure(own)
    figures: dict[str, Any] = {
        "variant": row.variant,
        "status": f"failed: {failed}" if failed else status_of(artifact),
        "artifact_bytes": serving_bytes(artifact),
        "seeds": [entry.manifest["seed"] for entry in row.artifacts],
        "artifact_digest": artifact.digest,
    }
    if failed or rank_SU is None:
        return figures
    figures |= accuracy_figures(rank_SU) | _speed_figures(own)
    for key, base in (("throughput_vs_teacher", "teacher"), ("throughput_vs_full_depth_teacher", FULL_DEPTH)):
        if results.get(base) and not failure(results[base]):
            figures[key] = round_ratios(own, results[base])
    return figures


def _speed_figures(own: list[dict[str, Any]]) -> dict[str, Any]:
    """Percentiles over the samples of all rounds; throughput and memory as medians over rounds."""
    samples = np.concatenate([result["latency_samples_s"] for result in own])
    return {
        **{key: own[0][key] for key in ("runtime", "precision", "num_parameters", "peak_gpu_bytes")},
        "latency_p50_s": float(np.quantile(samples, 0.5)),
        "latency_p99_s": float(np.quantile(samples, 0.99)),
        "latency_samples": len(samples),
        "throughput_per_s": float(np.median([result["throughput_per_s"] for result in own])),
        "completed_histories": own[0]["completed_histories"],
        "peak_rss_bytes": int(np.median([result["peak_rss_bytes"] for result in own])),
    }


def _full_depth(own: list[dict[str, Any]], llm: Artifact) -> dict[str, Any]:
    if failed := failure(own):
        return {"error": failed}
    return {"untrained": True, "num_layers": llm.metrics["num_layers"], **_speed_figures(own)} if own else {}


def _protocol(rows: Sequence[Row], sequences: Sequences, max_length: int, section: BenchmarkSection) -> dict[str, Any]:
    student = next((row.artifacts for row in rows if row.variant == "student"), [])
    return {
        "accuracy": "leave-one-out, full ranking over the catalogue, seen items filtered, ties to the lower index",
        "users": len(sequences.evaluated_users),
        "seeds": [artifact.manifest["seed"] for artifact in student],
        "speed": f"{section.rounds} rounds of fresh processes in rotated order, histories of {max_length} items, batch 1 for "
        f"latency and {section.batch_size} for throughput, {section.num_threads} threads, K = {section.k}",
    }
