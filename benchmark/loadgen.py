"""Load by MLCommons LoadGen: who asks when, and what it means for a percentile to be known.

    single stream   one request of one history after the other
    server          requests of one history at random instants (Poisson), answered in batches of those that wait
    offline         all histories at once, answered in batches

Latency counts from the instant a request was due, so that a stall delays every request it holds up (no coordinated omission).
Of a single stream there are LoadGen's early-stopping estimates as well: what the true percentile does not exceed, at 99%
confidence, given how many requests there were; None where there were too few. LoadGen-driven, which is not an MLPerf result.
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import mlperf_loadgen
import numpy as np

from recommender.ranking import Recommender

_ESTIMATE = re.compile(r"Early stopping (\d+\.\d)th percentile estimate: (\d+)")


@dataclass(frozen=True)
class Load:
    """One run: `sample_s` is float64[requests], the latency of each."""

    sample_s: np.ndarray
    duration_s: float
    estimate_s: dict[str, float]  # "p90", "p99": early-stopping estimates, where there were requests enough

    @property
    def throughput_per_s(self) -> float:
        """Completed histories a second."""
        return len(self.sample_s) / self.duration_s

    def percentile(self, percent: float) -> float:
        """Of the samples, in seconds."""
        return float(np.quantile(self.sample_s, percent / 100))


def single_stream(
    recommender: Recommender,
    history_NL: np.ndarray,
    k: int,
    *,
    seconds: float,
    max_requests: int,
    expected_s: float,
    seed: int = 0,
) -> Load:
    """Requests one after the other, for `seconds` (at least ten) or `max_requests`; one is expected to take `expected_s`."""

    def answer(samples: list[Any]) -> None:
        for sample in samples:
            recommender.recommend(history_NL[sample.index : sample.index + 1], k)
            _done([sample])

    settings = _settings("SingleStream", seed)
    settings.min_query_count, settings.max_query_count = min(10, max_requests), max_requests
    settings.min_duration_ms = max(round(seconds * 1000), 1)
    settings.single_stream_expected_latency_ns = max(round(expected_s * 1e9), 1000)
    return _run(settings, answer, len(history_NL))


def offline(
    recommender: Recommender,
    history_NL: np.ndarray,
    k: int,
    *,
    seconds: float,
    batch_size: int,
    expected_per_s: float,
    seed: int = 0,
) -> Load:
    """As many histories at once as `expected_per_s` says take about `seconds`, in batches."""

    def answer(samples: list[Any]) -> None:
        for first in range(0, len(samples), batch_size):
            batch = samples[first : first + batch_size]
            recommender.recommend(history_NL[[sample.index for sample in batch]], k)
            _done(batch)

    settings = _settings("Offline", seed)
    settings.offline_expected_qps, settings.min_duration_ms = expected_per_s, max(round(seconds * 1000), 1)
    settings.min_query_count = batch_size
    return _run(settings, answer, len(history_NL))


def server(
    recommender: Recommender,
    history_NL: np.ndarray,
    k: int,
    *,
    seconds: float,
    batch_size: int,
    rate_per_s: float,
    seed: int = 0,
) -> Load:
    """Requests that arrive at random at `rate_per_s`; whatever waits (at most `batch_size`) is answered together."""
    waiting: SimpleQueue[Any] = SimpleQueue()
    failed: list[BaseException] = []

    def answer(batch: list[Any]) -> None:
        recommender.recommend(history_NL[[sample.index for sample in batch]], k)
        _done(batch)

    answer_or_fail = _guarded(answer, failed)

    def serve() -> None:
        while (sample := waiting.get()) is not None:
            batch = [sample]
            while len(batch) < batch_size and not waiting.empty():
                batch.append(waiting.get())
            answer_or_fail(batch)

    def enqueue(samples: list[Any]) -> None:
        for sample in samples:
            waiting.put(sample)

    settings = _settings("Server", seed)
    settings.server_target_qps, settings.server_target_latency_percentile = rate_per_s, 0.99
    settings.server_target_latency_ns = 10**9  # judged by the caller, from the samples
    settings.min_duration_ms, settings.min_query_count = max(round(seconds * 1000), 1), 10
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        return _run(settings, enqueue, len(history_NL), failed)
    finally:
        waiting.put(None)  # the last: LoadGen asks no more
        thread.join()


def _guarded(answer: Callable[[list[Any]], None], failed: list[BaseException]) -> Callable[[list[Any]], None]:
    """`answer`, but that after an error every request counts as done, so that LoadGen comes to an end."""

    def guarded(samples: list[Any]) -> None:
        try:
            if not failed:
                return answer(samples)
        except BaseException as error:
            failed.append(error)
        _done(samples)

    return guarded


def _settings(scenario: str, seed: int) -> Any:
    settings = mlperf_loadgen.TestSettings()
    settings.scenario = getattr(mlperf_loadgen.TestScenario, scenario)
    settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
    settings.qsl_rng_seed = settings.sample_index_rng_seed = settings.schedule_rng_seed = seed
    return settings


def _run(
    settings: Any, answer: Callable[[list[Any]], None], num_histories: int, failed: list[BaseException] | None = None
) -> Load:
    """Run one test; an exception of the recommender ends it and is raised here."""
    failed = [] if failed is None else failed
    with tempfile.TemporaryDirectory() as folder:
        logs = mlperf_loadgen.LogSettings()
        logs.log_output.outdir, logs.log_output.copy_summary_to_stdout = folder, False
        logs.enable_trace = True
        system = mlperf_loadgen.ConstructSUT(_guarded(answer, failed), lambda: None)
        library = mlperf_loadgen.ConstructQSL(num_histories, num_histories, lambda _: None, lambda _: None)
        try:
            mlperf_loadgen.StartTestWithLogSettings(system, library, settings, logs, "")
        finally:
            mlperf_loadgen.DestroyQSL(library)
            mlperf_loadgen.DestroySUT(system)
        if failed:
            raise failed[0]
        return _read(Path(folder))


def _done(samples: list[Any]) -> None:
    mlperf_loadgen.QuerySamplesComplete([mlperf_loadgen.QuerySampleResponse(sample.id, 0, 0) for sample in samples])


def _read(folder: Path) -> Load:
    """What LoadGen's trace and summary say; times in the trace are microseconds, those from when a request was due ns."""
    sample_s, starts_us, ends_us = [], [], []
    for line in (folder / "mlperf_log_trace.json").read_text().splitlines():
        if '"Sample"' not in line:
            continue
        event = json.loads(line.rstrip(","))
        if event["ph"] == "b":
            sample_s.append(event["args"]["complete_ns"] / 1e9)
            starts_us.append(event["ts"])
        else:
            ends_us.append(event["ts"])
    summary = (folder / "mlperf_log_summary.txt").read_text()
    estimates = {f"p{float(percent):g}": int(ns) / 1e9 for percent, ns in _ESTIMATE.findall(summary)}
    return Load(np.array(sample_s), (max(ends_us) - min(starts_us)) / 1e6, estimates)
