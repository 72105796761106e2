"""The runner every figure of speed comes from.

One fresh process per variant and round, alone on the machine, the order rotated from round to round; ratios are taken within a
round, because a shared machine's pace changes between rounds by more than most variants differ. Raw samples are kept, and
whole rounds as well: a measurement that was interrupted goes on with the round it was in.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.config import BenchmarkSection
from benchmark.environment import environment
from benchmark.worker import WATCH, Job
from foundation import console
from foundation.artifact import write_atomically

Results = dict[str, list[dict[str, Any]]]
_POLL_S = 1.0


def run_process(job: Job, section: BenchmarkSection, folder: Path) -> dict[str, Any]:
    """Run a job in a process of its own, which ends with this one; {"error": why} if it crashed or hangs.

    Job and result travel as files in `folder`; the process touches a third whenever it has finished a step.
    """
    job_file, result_file, alive_file = (folder / name for name in ("job.json", "result.json", "alive"))
    result_file.unlink(missing_ok=True)
    job.write(job_file)
    alive_file.touch()
    threads = str(section.num_threads)
    environ = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-m", "benchmark.worker", *map(str, (job_file, result_file, alive_file)), WATCH]
    with tempfile.TemporaryFile("w+") as said:
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": said, "text": True}
        process = subprocess.Popen(command, env=environ, start_new_session=True, **pipes)
        try:
            hung = not _ended(process, alive_file, section.timeout_s)
        finally:
            if process.returncode != 0:
                with suppress(ProcessLookupError):  # of itself, and of what it began to build something
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
        said.seek(0)
        last = (said.read().strip().splitlines() or ["no message"])[-1]
    if hung:
        return {"error": f"no step finished within {section.timeout_s:.0f} s"}
    if process.returncode == -signal.SIGKILL:
        return {"error": "out of memory: the kernel ended it"}
    if process.returncode != 0 or not result_file.exists():
        return {"error": f"exit code {process.returncode}: {last}"}
    return json.loads(result_file.read_text())


def _ended(process: subprocess.Popen[str], alive_file: Path, patience_s: float) -> bool:
    """Wait until the process has ended; False where it has shown no life for so long."""
    seen_ns, until = 0, 0.0
    while True:
        if (touched_ns := alive_file.stat().st_mtime_ns) != seen_ns:  # by a clock that a suspended machine does not turn
            seen_ns, until = touched_ns, time.monotonic() + patience_s
        try:
            process.wait(min(_POLL_S, patience_s))
            return True
        except subprocess.TimeoutExpired:
            if time.monotonic() > until:
                return False


def measure(jobs: Mapping[str, Job], section: BenchmarkSection, folder: Path) -> Results:
    """Results of every job, one per round; accuracy only in the first. What fails once is left out of later rounds.

    Whole rounds are kept in `folder`, for the same jobs, code and machine, unless one failed: who comes again has mended it.
    """
    names, kept_file = list(jobs), folder / "rounds.json"
    what = {"jobs": {name: asdict(job) for name, job in jobs.items()}, "environment": environment(section.num_threads)}
    done, results = _kept(kept_file, what) or (0, {name: [] for name in jobs})
    if done:
        console.say(f"going on after {done} of {section.rounds} rounds")
    schedule = [(r, names[(r + i) % len(names)]) for r in range(done, section.rounds) for i in range(len(names))]
    for number, (round_number, name) in enumerate(console.progress(schedule, "measuring"), 1):
        if not failure(results[name]):
            job = jobs[name] if round_number == 0 else replace(jobs[name], data="")
            results[name].append(run_process(job, section, folder))
        if number % len(names) == 0:
            kept = {"what": what, "rounds": round_number + 1, "results": results}
            write_atomically(kept_file, json.dumps(kept).encode())
    return results


def _kept(kept_file: Path, what: Mapping[str, Any]) -> tuple[int, Results] | None:
    """(rounds, results) that an interrupted run of the same jobs left."""
    try:
        kept = json.loads(kept_file.read_bytes())
    except (OSError, ValueError):
        return None
    if json.loads(json.dumps(what)) != kept["what"] or any(map(failure, kept["results"].values())):
        return None
    return kept["rounds"], kept["results"]


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
