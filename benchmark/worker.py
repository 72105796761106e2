"""One measurement in one fresh process: `python -m benchmark.worker JOB.json RESULT.json` opens a variant, measures, writes.

Speed is measured on a fixed matrix of histories; accuracy, afterwards, on the evaluated users with their whole histories.
Latency counts from the instant a request was due, which in the single-stream scenario is the end of the one before.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.config import BenchmarkSection
from benchmark.variants import Opened, open_full_depth, open_variant
from foundation.artifact import load
from recommender.ranking import Recommender

WATCH = "--end-with-parent"


@dataclass(frozen=True)
class Job:
    """What one process is to do; paths as strings because it travels as JSON."""

    artifact: str
    digest: str  # of the artefact, which the parent has verified
    section: dict[str, Any]
    histories: str = ""  # .npy of int64[N, L]: measure speed
    data: str = ""  # the dataset artefact: rank for its evaluated users …
    top: str = ""  # … and put the lists here (.npy of int64[U, K])
    full_depth_llm: str = ""  # measure the teacher's LLM at full depth instead

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


def run_job(job: Job) -> dict[str, Any]:
    """The result of a job: samples in seconds, memory in bytes; lists go to their own file."""
    section = BenchmarkSection.model_validate(job.section)
    artifact = load(job.artifact, verified_digest=job.digest)
    if job.full_depth_llm:
        opened = open_full_depth(artifact, load(job.full_depth_llm), section.num_threads)
    else:
        opened = open_variant(artifact, section.num_threads)
    result: dict[str, Any] = {"runtime": opened.runtime, "precision": opened.precision, "num_parameters": opened.num_parameters}
    if job.histories:
        result |= _speed(opened, job, section)
    if job.data:
        _rank(opened, job, section)
    return result


def _rank(opened: Opened, job: Job, section: BenchmarkSection) -> None:
    from recommender.data import load_dataset
    from recommender.evaluate import recommend_all
    from recommender.split import build_sequences

    sequences = build_sequences(load_dataset(load(job.data, "dataset")))
    histories = [sequences.history(u, "test") for u in sequences.evaluated_users]
    np.save(job.top, recommend_all(opened.recommender, histories, section.k, section.batch_size), allow_pickle=False)


def _speed(opened: Opened, job: Job, section: BenchmarkSection) -> dict[str, Any]:
    history_NL = np.load(job.histories, allow_pickle=False)
    _warm_up(opened.recommender, history_NL[:1], section)
    single_s = _single_stream(opened.recommender, history_NL, section)
    _warm_up(opened.recommender, history_NL[: section.batch_size], section)
    completed, offline_s = _offline(opened.recommender, history_NL, section)
    return {
        "latency_samples_s": single_s,
        "completed_histories": completed,
        "offline_s": offline_s,
        "throughput_per_s": completed / offline_s,
        "peak_rss_bytes": _peak_rss_bytes(),
        "peak_gpu_bytes": _peak_gpu_bytes(),
    }


def _warm_up(recommender: Recommender, history_BL: np.ndarray, section: BenchmarkSection) -> None:
    until = time.perf_counter() + section.warmup_s
    recommender.recommend(history_BL, section.k)
    while time.perf_counter() < until:
        recommender.recommend(history_BL, section.k)


def _single_stream(recommender: Recommender, history_NL: np.ndarray, section: BenchmarkSection) -> list[float]:
    """One request after the other; at least ten, at most `single_requests`."""
    samples, started = [], time.perf_counter()
    due = started
    for request in range(section.single_requests):
        row = request % len(history_NL)
        recommender.recommend(history_NL[row : row + 1], section.k)
        now = time.perf_counter()
        samples.append(now - due)
        due = now
        if now - started > section.max_single_s and len(samples) >= 10:
            break
    return samples


def _offline(recommender: Recommender, history_NL: np.ndarray, section: BenchmarkSection) -> tuple[int, float]:
    """(histories, seconds): whole passes over all histories until `min_offline_s`; a slow one ends within its first pass,
    at the first batch that ends after `max_offline_s`."""
    started, completed, elapsed_s = time.perf_counter(), 0, 0.0
    while elapsed_s < section.min_offline_s:
        for first in range(0, len(history_NL), section.batch_size):
            batch = history_NL[first : first + section.batch_size]
            recommender.recommend(batch, section.k)
            completed += len(batch)
            elapsed_s = time.perf_counter() - started
            if elapsed_s > section.max_offline_s:
                break
    return completed, elapsed_s


def _peak_rss_bytes() -> int:
    """The kernel's high-water mark of this process's resident memory (VmHWM), or 0 where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _peak_gpu_bytes() -> int | None:
    torch = sys.modules.get("torch")
    return int(torch.cuda.max_memory_allocated()) if torch is not None and torch.cuda.is_available() else None


def _end_with_the_parent() -> None:
    """Leave when standard input, whose other end the parent holds, is closed: nobody reads the result any more."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def main() -> None:
    if WATCH in sys.argv:
        threading.Thread(target=_end_with_the_parent, daemon=True).start()
    job_file, result_file = Path(sys.argv[1]), Path(sys.argv[2])
    result_file.write_text(json.dumps(run_job(Job(**json.loads(job_file.read_text())))))


if __name__ == "__main__":
    main()
