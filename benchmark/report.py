"""Stage: measure every variant, put accuracy, speed and memory into one table, write it as JSON and Markdown."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.config import BenchmarkSection
from benchmark.runner import measure_speed, round_ratios, run_process
from benchmark.variants import status_of
from benchmark.worker import Job
from foundation import console
from foundation.artifact import Artifact, Draft, load, versions
from recommender.data import load_dataset
from recommender.metrics import bootstrap_ci, hit_rate, ndcg, paired_relative_difference
from recommender.ranking import pad_left
from recommender.split import Sequences, build_sequences

REPORT_SCHEMA = 1
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
    """One variant: its artefacts, one per seed (accuracy uses all of them, speed the first)."""

    variant: str
    artifacts: Sequence[Artifact]


def build_report(
    rows: Sequence[Row], data: Artifact, llm: Artifact, max_length: int, section: BenchmarkSection, draft: Draft
) -> None:
    """Measure `rows` and write report.json, report.md and the raw latency samples."""
    sequences = build_sequences(load_dataset(data.path))
    np.save(draft.checkpoint / "histories.npy", speed_histories(sequences, max_length, section), allow_pickle=False)
    runnable = [row for row in rows if status_of(row.artifacts[0]) == "ok"]
    ranks, failures = _accuracy(runnable, data, section)
    speed_jobs = {row.variant: _speed_job(row.artifacts[0], section, draft) for row in runnable if row.variant not in failures}
    teacher = next((row.artifacts[0] for row in rows if row.variant == "teacher"), None)
    if teacher is not None:
        speed_jobs["full-depth teacher"] = _speed_job(teacher, section, draft, llm)
    speed = measure_speed(speed_jobs, section)
    report = {
        "schema_version": REPORT_SCHEMA,
        "dataset": data.path.parent.name,
        "targets_sha256": sequences.targets_sha256(),
        "environment": environment(section),
        "protocol": {
            "accuracy": "leave-one-out, full ranking over the catalogue, seen items filtered, ties to the lower index",
            "seeds": [
                artifact.manifest["seed"] for artifact in next((row.artifacts for row in rows if row.variant == "student"), [])
            ],
            "users": len(sequences.evaluated_users),
            "speed": f"{section.rounds} rounds of fresh processes in rotated order, histories of {max_length} items, "
            f"batch 1 (latency) and {section.batch_size} (throughput), {section.num_threads} threads, K = {section.k}",
        },
        "rows": [_row(row, ranks.get(row.variant), speed.get(row.variant, []), failures) for row in rows],
        "comparisons": comparisons(ranks),
    }
    report["full_depth_teacher"] = _full_depth(speed.get("full-depth teacher", []), llm)
    _add_ratios(report, speed)
    (draft.path / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False))
    (draft.path / "report.md").write_text(to_markdown(report))
    (draft.path / "raw_speed.json").write_text(json.dumps(speed))
    draft.metrics |= {"rows": len(rows), "failed": sorted(failures)}


def speed_histories(sequences: Sequences, max_length: int, section: BenchmarkSection) -> np.ndarray:
    """Test histories of `num_histories` users (in order, from the start again if there are fewer), int64[N, max_length]."""
    users = np.resize(sequences.evaluated_users, section.num_histories)
    return pad_left([sequences.history(u, "test") for u in users], max_length)


def environment(section: BenchmarkSection) -> dict[str, Any]:
    """The machine and the libraries."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    flags = next((line.split(":", 1)[1].split() for line in _lines("/proc/cpuinfo") if line.startswith("flags")), [])
    shown = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if flag in flags]
    return {
        "cpu": cpu,
        "cpu_flags": shown,
        "num_threads": section.num_threads,
        "gpu": _gpu(),
        "system": platform.platform(),
        "versions": versions(),
    }


def to_markdown(report: Mapping[str, Any]) -> str:
    """The table a person reads; "-" where nothing was measured."""
    header = (
        "variant",
        "NDCG@10 [95% CI]",
        "HR@10",
        "p50 ms",
        "p99 ms",
        "histories/s",
        "x teacher",
        "peak RSS MiB",
        "parameters",
        "MiB",
        "runs in",
    )
    lines = [" | ".join(header), " | ".join("---" for _ in header)]
    lines += [" | ".join(_cells(row)) for row in report["rows"]]
    full = report["full_depth_teacher"]
    text = "\n".join(f"| {line} |" for line in lines)
    if full and "throughput_per_s" in full:
        text += (
            f"\n\nThe teacher's LLM at full depth ({full['num_layers']} layers, untrained: speed and parameters only) completes "
            f"{full['throughput_per_s']:.1f} histories/s with {full['num_parameters'] / 1e6:.1f} M parameters."
        )
    text += "\n\n" + "\n".join(_sentence(name, value) for name, value in report["comparisons"].items())
    return (
        text
        + f"\n\n{report['protocol']['accuracy']}; {report['protocol']['speed']}; targets {report['targets_sha256'][:16]}.\n"
    )


def _accuracy(rows: Sequence[Row], data: Artifact, section: BenchmarkSection) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Test ranks int64[seeds, users] of every variant, and why the others failed."""
    ranks, failures = {}, {}
    jobs = [
        (row.variant, Job(str(a.path), "accuracy", section.model_dump(), data=str(data.path)))
        for row in rows
        for a in row.artifacts
    ]
    for variant, job in console.progress(jobs, "accuracy"):
        result = run_process(job, section)
        if "error" in result:
            failures[variant] = result["error"]
        else:
            ranks.setdefault(variant, []).append(result["ranks"])
    return {variant: np.array(rank_SU) for variant, rank_SU in ranks.items() if variant not in failures}, failures


def _speed_job(artifact: Artifact, section: BenchmarkSection, draft: Draft, llm: Artifact | None = None) -> Job:
    histories = str((draft.checkpoint / "histories.npy").resolve())
    return Job(
        str(artifact.path), "speed", section.model_dump(), histories=histories, full_depth_llm=str(llm.path) if llm else ""
    )


def _row(row: Row, rank_SU: np.ndarray | None, speed: list[dict[str, Any]], failures: Mapping[str, str]) -> dict[str, Any]:
    artifact = row.artifacts[0]
    failed = failures.get(row.variant) or next((result["error"] for result in speed if "error" in result), None)
    figures: dict[str, Any] = {
        "variant": row.variant,
        "status": f"failed: {failed}" if failed else status_of(artifact),
        "artifact_bytes": artifact.num_bytes,
        "artifact_digest": artifact.digest,
    }
    if rank_SU is not None:
        ndcg_SU = ndcg(rank_SU, 10)
        figures |= {
            "hr_at_10": float(hit_rate(rank_SU, 10).mean()),
            "ndcg_at_10": float(ndcg_SU.mean()),
            "ndcg_at_10_ci95": list(bootstrap_ci(ndcg_SU.mean(axis=0))),
            "ndcg_at_10_per_seed": ndcg_SU.mean(axis=1).tolist(),
        }
    return figures if failed else figures | _speed_figures(speed)


def _speed_figures(speed: list[dict[str, Any]]) -> dict[str, Any]:
    if not speed:
        return {}
    samples = np.concatenate([result["latency_samples_s"] for result in speed])
    return {
        "runtime": speed[0]["runtime"],
        "precision": speed[0]["precision"],
        "num_parameters": speed[0]["num_parameters"],
        "latency_p50_s": float(np.quantile(samples, 0.5)),
        "latency_p99_s": float(np.quantile(samples, 0.99)),
        "throughput_per_s": float(np.median([result["throughput_per_s"] for result in speed])),
        "peak_rss_bytes": int(np.median([result["peak_rss_bytes"] for result in speed])),
        "peak_gpu_bytes": speed[0]["peak_gpu_bytes"],
    }


def comparisons(ranks: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Paired relative differences of NDCG@10, per-user means over matched seeds."""
    found = {}
    for new, old in COMPARISONS:
        if new in ranks and old in ranks and ndcg(ranks[old], 10).any():
            new_SU, old_SU = ndcg(ranks[new], 10), ndcg(ranks[old], 10)
            per_seed = (new_SU.mean(axis=1) / np.maximum(old_SU.mean(axis=1), 1e-12) - 1).tolist()
            found[f"{new} over {old}"] = paired_relative_difference(new_SU.mean(axis=0), old_SU.mean(axis=0)) | {
                "per_seed": per_seed
            }
    return found


def _full_depth(speed: list[dict[str, Any]], llm: Artifact) -> dict[str, Any]:
    if not speed or "error" in speed[0]:
        return {"error": speed[0]["error"]} if speed else {}
    return {"untrained": True, "num_layers": llm.metrics["num_layers"], **_speed_figures(speed)}


def _add_ratios(report: dict[str, Any], speed: Mapping[str, list[dict[str, Any]]]) -> None:
    """Throughput over the trained teacher (a) and over the full-depth one (b), within rounds."""
    for row in report["rows"]:
        own = speed.get(row["variant"], [])
        for key, name in (("throughput_vs_teacher", "teacher"), ("throughput_vs_full_depth_teacher", "full-depth teacher")):
            base = speed.get(name, [])
            if own and base and not any("error" in result for result in [*own, *base]):
                row[key] = round_ratios(own, base)


def _cells(row: Mapping[str, Any]) -> list[str]:
    def cell(key: str, form: str, scale: float = 1.0) -> str:
        return format(row[key] * scale, form) if row.get(key) is not None else "-"

    accuracy = "-"
    if "ndcg_at_10" in row:
        accuracy = f"{row['ndcg_at_10']:.4f} [{row['ndcg_at_10_ci95'][0]:.4f}, {row['ndcg_at_10_ci95'][1]:.4f}]"
    ratio = row.get("throughput_vs_teacher")
    runs_in = f"{row['runtime']}, {row['precision']}" if "runtime" in row else row["status"]
    return [
        row["variant"],
        accuracy,
        cell("hr_at_10", ".4f"),
        cell("latency_p50_s", ".2f", 1e3),
        cell("latency_p99_s", ".2f", 1e3),
        cell("throughput_per_s", ",.0f"),
        f"{ratio['median']:.1f}" if ratio else "-",
        cell("peak_rss_bytes", ",.0f", 1 / 2**20),
        cell("num_parameters", ","),
        cell("artifact_bytes", ",.1f", 1 / 2**20),
        runs_in,
    ]


def _sentence(name: str, value: Mapping[str, Any]) -> str:
    low, high = value["ci95"]
    return f"- NDCG@10, {name}: {value['relative']:+.1%} [{low:+.1%}, {high:+.1%}]"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def load_report(folder: Path) -> dict[str, Any]:
    """The report in an artefact folder."""
    return json.loads(load(folder, "report").file("report.json").read_text())
