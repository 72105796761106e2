"""The runner every figure of speed comes from.

One fresh process per variant and round, alone on the machine, the order rotated from round to round; ratios are taken within a
round, because a shared machine's pace changes between rounds by more than most variants differ. Raw samples are kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.config import BenchmarkSection
from benchmark.worker import WATCH, Job
from foundation import console

Results = dict[str, list[dict[str, Any]]]


def run_process(job: Job, section: BenchmarkSection, folder: Path) -> dict[str, Any]:
    """Run a job in a process of its own, which ends with this one; {"error": why} if it crashed or took too long.

    Job and result travel as files in `folder`.
    """
    job_file, result_file = folder / "job.json", folder / "result.json"
    result_file.unlink(missing_ok=True)
    job.write(job_file)
    timeout_s = section.timeout_s + (section.accuracy_timeout_s if job.data else 0)
    threads = str(section.num_threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-m", "benchmark.worker", str(job_file), str(result_file), WATCH]
    held, keep = os.pipe()
    try:
        done = subprocess.run(command, env=environment, stdin=held, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {timeout_s:.0f} s"}
    finally:
        os.close(held)
        os.close(keep)
    if done.returncode != 0 or not result_file.exists():
        return {"error": f"exit code {done.returncode}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"}
    return json.loads(result_file.read_text())


def measure(jobs: Mapping[str, Job], section: BenchmarkSection, folder: Path) -> Results:
    """Results of every job, one per round; accuracy only in the first. What fails once is left out of later rounds."""
    names, results = list(jobs), {name: [] for name in jobs}
    schedule = [(r, names[(r + i) % len(names)]) for r in range(section.rounds) for i in range(len(names))]
    for round_number, name in console.progress(schedule, "measuring"):
        if not failure(results[name]):
            job = jobs[name] if round_number == 0 else replace(jobs[name], data="")
            results[name].append(run_process(job, section, folder))
    return results


def failure(own: Sequence[Mapping[str, Any]]) -> str | None:
    """Why a variant failed, or None."""
    return next((result["error"] for result in own if "error" in result), None)


def typical(own: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """The median over the rounds that have a value."""
    known = [result[key] for result in own if result[key] is not None]
    return float(np.median(known)) if known else None


def round_ratios(
    new: Sequence[Mapping[str, Any]], old: Sequence[Mapping[str, Any]], num_resamples: int = 10_000
) -> dict[str, Any]:
    """Throughput of `new` over `old`, taken within each round: median and 95% bootstrap interval over rounds."""
    ratio_R = np.array([a["throughput_per_s"] / b["throughput_per_s"] for a, b in zip(new, old, strict=True)])
    draws = np.random.default_rng(0).integers(0, len(ratio_R), (num_resamples, len(ratio_R)))
    low, high = np.quantile(np.median(ratio_R[draws], axis=1), [0.025, 0.975])
    return {"median": float(np.median(ratio_R)), "ci95": [float(low), float(high)], "per_round": ratio_R.tolist()}
