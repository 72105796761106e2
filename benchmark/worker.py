"""One measurement in one fresh process: `python -m benchmark.worker JOB RESULT ALIVE` opens, measures, writes.

Speed is measured on a fixed matrix of histories, under LoadGen's load (`loadgen.py`); afterwards lists are made for the
evaluated users with their whole histories. The file ALIVE is touched after every step: who waits can tell work from a hang.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmark import ceiling, loadgen
from benchmark.config import BenchmarkSection
from benchmark.gpu import Meter
from benchmark.variants import Opened, open_endpoint, open_full_depth, open_variant
from foundation.artifact import load
from foundation.failure import first_line
from recommender.ranking import Recommender

if TYPE_CHECKING:
    from recommender.data import Dataset
    from recommender.split import Sequences

WATCH = "--end-with-parent"
_RATE_STEPS = 7
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Job:
    """What one process is to do; paths as strings because it travels as JSON."""

    artifact: str
    digest: str  # of the artefact, which the parent has verified
    section: dict[str, Any]
    histories: str = ""  # .npy of int64[N, L]: measure speed
    data: str = ""  # the dataset artefact: rank for its evaluated users …
    top: str = ""  # … and put the lists here (.npy of int64[U, K])
    runtime: str = "onnxruntime"  # of a graph or a student
    graph: dict[str, Any] = field(default_factory=dict)  # what graph of a student (`export.graph.ServingGraph`)
    endpoint: str = ""  # of a server that answers instead: HOST:PORT/MODEL or http://…
    ceiling: bool = False  # measure the machine instead of a variant
    full_depth_llm: str = ""  # measure the teacher's LLM at full depth instead
    drawn: dict[str, Any] = field(default_factory=dict)  # draw a graph over a larger catalogue instead (`catalogue.draw`)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


class NoNumbers(ArithmeticError):
    """A variant whose scores are not numbers (NaN), or whose lists have holes: it ran, and its answers are worth nothing."""


def run_job(job: Job, alive: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The result of a job: samples in seconds, memory in bytes; lists go to their own file. `alive` is called step by step."""
    section = BenchmarkSection.model_validate(job.section)
    if job.ceiling:
        return ceiling.measure_ceilings(section.num_threads)
    if job.drawn:
        from benchmark.catalogue import draw

        return draw(section, **job.drawn)
    artifact = load(job.artifact, verified_digest=job.digest)
    if job.full_depth_llm:
        opened = open_full_depth(artifact, load(job.full_depth_llm), section.num_threads)
    elif job.endpoint:
        opened = open_endpoint(artifact, job.endpoint)
    else:
        opened = open_variant(artifact, section.num_threads, job.runtime, section.k, job.graph)
    result: dict[str, Any] = {"runtime": opened.runtime, "precision": opened.precision, "num_parameters": opened.num_parameters}
    alive()
    if job.histories:
        result |= _speed(opened, job, section, alive)
    if job.data:
        _rank(opened, job, section, alive)
    return result


def judged_sequences(dataset: Dataset, section: BenchmarkSection) -> Sequences:
    """The sequences, whose evaluated users are those that the section asks for."""
    from recommender.split import build_sequences

    return replace(build_sequences(dataset), max_evaluated=section.max_users or None)


def _rank(opened: Opened, job: Job, section: BenchmarkSection, alive: Callable[[], None]) -> None:
    from recommender.data import load_dataset
    from recommender.evaluate import recommend_all

    sequences = judged_sequences(load_dataset(load(job.data, "dataset")), section)
    histories = [sequences.history(u, "test") for u in sequences.evaluated_users]
    checked = _Checked(opened.recommender, alive)
    top_UK = recommend_all(checked, histories, section.k, section.batch_size)
    left_U = np.array([sequences.num_items - len(np.unique(history)) for history in histories])
    holes = ((top_UK > 0).sum(axis=1) < np.minimum(left_U, section.k)).sum()
    if holes:
        raise NoNumbers(f"the lists of {holes} of {len(top_UK)} users lack items although there are some left")
    np.save(job.top, top_UK, allow_pickle=False)


@dataclass(frozen=True)
class _Checked:
    """A recommender whose scores are looked at."""

    recommender: Recommender
    alive: Callable[[], None]

    def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        index_BK, score_BK = self.recommender.recommend(history_BL, k)
        if np.isnan(score_BK).any():
            bad = np.isnan(score_BK).any(axis=1).sum()
            raise NoNumbers(f"scores are NaN for {bad} of {len(score_BK)} histories of a batch")
        self.alive()
        return index_BK, score_BK


def _speed(opened: Opened, job: Job, section: BenchmarkSection, alive: Callable[[], None]) -> dict[str, Any]:
    history_NL, recommender, k = np.load(job.histories, allow_pickle=False), opened.recommender, section.k
    expected_s = _warm_up(recommender, history_NL[:1], section)
    size = section.batch_size
    rate = size / _warm_up(recommender, history_NL[:size], section)
    alive()
    memory = {"peak_rss_bytes": None if opened.remote else _peak_rss_bytes()}  # before the load's own
    meter = Meter(on_gpu=opened.runtime.endswith("cuda"))
    single = loadgen.single_stream(
        recommender, history_NL, k, seconds=section.single_s, max_requests=section.max_single_requests, expected_s=expected_s
    )
    alive()
    before_j, held = meter.joules(), [meter.process_bytes()]
    whole = loadgen.offline(recommender, history_NL, k, seconds=section.offline_s, batch_size=size, expected_per_s=rate)
    after_j = meter.joules()
    held.append(meter.process_bytes())
    alive()
    memory |= {"peak_gpu_bytes": _peak_gpu_bytes(), "gpu_process_bytes": max(filter(None, held), default=None)}
    found: dict[str, Any] = {
        "latency_samples_s": single.sample_s.tolist(),
        "latency_estimates_s": single.estimate_s,
        "completed_histories": len(whole.sample_s),
        "throughput_per_s": whole.throughput_per_s,
        "joules_per_history": None if before_j is None or after_j is None else (after_j - before_j) / len(whole.sample_s),
        **memory,
        "operations": [None, None],
    }
    further: dict[str, Callable[[], Any]] = {}
    if section.full:
        further["max_rate"] = lambda: _max_rate(recommender, history_NL, whole.throughput_per_s, section, alive)
        further["batches"] = lambda: _batches(recommender, history_NL, section, alive)
    further["operations"] = lambda: [_operations(opened, history_NL[:batch], section) for batch in (1, size)]
    for part, measured in further.items():
        try:
            found[part] = measured()
        except Exception as error:  # what was measured before is worth no less
            why = first_line(str(error), "no reason given")
            found.setdefault("not_measured", {})[part] = f"{type(error).__name__}: {why}"
    return found


def _operations(opened: Opened, history_BL: np.ndarray, section: BenchmarkSection) -> int | None:
    """Of one call; None for what is no matrix product. Counting loads libraries: last."""
    if opened.graph:
        return ceiling.operations_of_graph(opened.graph, *history_BL.shape)
    if opened.runtime.startswith("pytorch"):
        return ceiling.operations_in_torch(opened.recommender, history_BL, section.k)
    return None


def _warm_up(recommender: Recommender, history_BL: np.ndarray, section: BenchmarkSection) -> float:
    """Seconds of the median call, the first left out."""
    recommender.recommend(history_BL, section.k)
    until, times = time.perf_counter() + section.warmup_s, []
    while not times or time.perf_counter() < until:
        started = time.perf_counter()
        recommender.recommend(history_BL, section.k)
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def _max_rate(
    recommender: Recommender, history_NL: np.ndarray, offline_per_s: float, section: BenchmarkSection, alive: Callable[[], None]
) -> dict[str, Any]:
    """The highest rate of random arrivals whose p99 stays within the bound, found by halving between none and offline's."""
    held, low, high, steps = 0.0, 0.0, 1.0, []
    for _ in range(_RATE_STEPS):
        share = (low + high) / 2
        load = loadgen.server(
            recommender,
            history_NL,
            section.k,
            seconds=section.server_s,
            batch_size=section.batch_size,
            rate_per_s=share * offline_per_s,
        )
        alive()
        p50_s, p90_s, p99_s = map(load.percentile, (50, 90, 99))
        latencies = {"p50_s": p50_s, "p90_s": p90_s, "p99_s": p99_s}
        steps.append({"rate_per_s": share * offline_per_s, **latencies, "requests": len(load.sample_s)})
        if p99_s <= section.max_p99_s:
            held, low = share * offline_per_s, share
        else:
            high = share
    return {"rate_per_s": held, "max_p99_s": section.max_p99_s, "steps": steps}


def _batches(
    recommender: Recommender, history_NL: np.ndarray, section: BenchmarkSection, alive: Callable[[], None]
) -> list[dict[str, float]]:
    """Seconds of the median call by batch size; sizes whose one call takes longer than a second end the sweep."""
    found = []
    for size in _BATCH_SIZES:
        call_s = _warm_up(recommender, np.resize(history_NL, (size, history_NL.shape[1])), section)
        alive()
        found.append({"batch_size": size, "call_s": call_s})
        if call_s > 1.0:
            break
    return found


def _peak_rss_bytes() -> int:
    """The kernel's high-water mark of this process's resident memory (VmHWM), or 0 where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _peak_gpu_bytes() -> int | None:
    torch = sys.modules.get("torch")
    return int(torch.cuda.max_memory_allocated()) if torch is not None and torch.cuda.is_initialized() else None


def _end_with_the_parent() -> None:
    """Leave when standard input, whose other end the parent holds, is closed: nobody reads the result any more.

    What this process began to build something (a compiler) goes with it, where the parent gave it a group of its own.
    """
    os.read(sys.stdin.fileno(), 1)
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main() -> None:
    if WATCH in sys.argv:
        threading.Thread(target=_end_with_the_parent, daemon=True).start()
    job_file, result_file, alive_file = map(Path, sys.argv[1:4])
    result_file.write_text(json.dumps(run_job(Job(**json.loads(job_file.read_text())), alive_file.touch)))


if __name__ == "__main__":
    main()
