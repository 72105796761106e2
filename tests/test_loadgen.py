"""Load: planted times are seen as long as they are, stalls are charged to every request they hold up."""

from __future__ import annotations

import time

import numpy as np
import pytest

from benchmark import loadgen

HISTORIES = np.arange(1, 301).reshape(100, 3)


class Busy:
    """Takes `call_s` a call, whatever the batch, and remembers how long its calls took and which histories it saw."""

    def __init__(self, call_s: float, stall_s: float = 0.0) -> None:
        self.call_s, self.stall_s, self.took_s, self.batches, self.seen = call_s, stall_s, [], [], set()

    def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        started = time.perf_counter()
        until = started + self.call_s + (self.stall_s if len(self.took_s) == 20 else 0)
        while time.perf_counter() < until:
            pass
        self.took_s.append(time.perf_counter() - started)
        self.batches.append(len(history_BL))
        self.seen |= set(history_BL[:, 0])
        return np.zeros((len(history_BL), k), np.int64), np.zeros((len(history_BL), k), np.float32)


def test_a_planted_time_is_seen_and_the_overhead_is_small() -> None:
    """Overhead: what a request takes beyond the recommender's own time, at the median."""
    busy = Busy(200e-6)
    load = loadgen.single_stream(busy, HISTORIES, 5, seconds=5, max_requests=1000, expected_s=200e-6)
    assert len(load.sample_s) == len(busy.took_s) == 1000
    overhead_s = np.median(load.sample_s) - np.median(busy.took_s)
    assert 0 <= overhead_s < 30e-6
    assert set(busy.batches) == {1}
    assert busy.seen <= set(HISTORIES[:, 0])
    assert load.estimate_s["p90"] >= load.percentile(50)


def test_a_slow_one_answers_at_least_ten() -> None:
    load = loadgen.single_stream(Busy(0.02), HISTORIES, 5, seconds=0.01, max_requests=1000, expected_s=0.02)
    assert len(load.sample_s) >= 10
    assert "p99" not in load.estimate_s  # too few to tell


def test_offline_answers_in_batches() -> None:
    busy = Busy(2e-3)
    load = loadgen.offline(busy, HISTORIES, 5, seconds=0.2, batch_size=16, expected_per_s=8000)
    assert set(busy.batches[:-1]) == {16}
    assert sum(busy.batches) == len(load.sample_s) >= 1600
    assert load.throughput_per_s == pytest.approx(len(load.sample_s) / sum(busy.took_s), rel=0.25)


def test_a_stall_is_charged_to_all_whom_it_holds_up() -> None:
    """One stall of 300 ms among calls of 0.1 ms: a client that waits politely would see one slow request."""
    busy = Busy(1e-4, stall_s=0.3)
    load = loadgen.server(busy, HISTORIES, 5, seconds=1.0, batch_size=1, rate_per_s=200)
    assert len(load.sample_s) == len(busy.took_s)
    assert (load.sample_s > 0.1).sum() > 15  # about 40 were due in the first 200 ms of it
    assert load.sample_s.max() > 0.29


def test_what_waits_is_answered_together() -> None:
    busy = Busy(0.02)
    loadgen.server(busy, HISTORIES, 5, seconds=0.5, batch_size=8, rate_per_s=300)
    assert max(busy.batches) > 1
    assert max(busy.batches) <= 8


def test_an_error_of_the_recommender_is_raised() -> None:
    class Broken:
        def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            raise ValueError("NaN among the scores")

    with pytest.raises(ValueError, match="NaN among the scores"):
        loadgen.single_stream(Broken(), HISTORIES, 5, seconds=0.1, max_requests=100, expected_s=1e-3)
    with pytest.raises(ValueError, match="NaN among the scores"):
        loadgen.offline(Broken(), HISTORIES, 5, seconds=0.1, batch_size=4, expected_per_s=100)
    with pytest.raises(ValueError, match="NaN among the scores"):
        loadgen.server(Broken(), HISTORIES, 5, seconds=0.1, batch_size=4, rate_per_s=100)
