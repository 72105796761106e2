"""The gate's procedure: measure, judge, measure again where it is not clear, and never fail on one reading.

    FAIL      a metric is over its budget, and again with fresh processes
    PASS      every metric is within its budget
    UNCLEAR   neither, after as many groups as the section allows: a warning, not a failure
    UNFIT     base differs from itself, or too noisily to tell: this machine cannot judge
    NO_BASE   base is from before there was a gate: nothing was compared

Lists are compared first, each side's made by its own code, so that a side that cannot serve is found before anything is timed.
Time is compared by interleaved pairs (`measure.py`, `verdict.py`). Memory, bytes and NDCG are ratios of what was counted; one
of them over its budget fails on any machine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

import numpy as np

from benchmark.gate.config import GateSection
from benchmark.gate.measure import HISTORY_LENGTH, LATENCY, THROUGHPUT, Samples, Side, measure, ranked
from benchmark.gate.verdict import Estimate, Finding, Judged, estimate, judge, unfit
from recommender.beyond import overlap
from recommender.evaluate import target_ranks
from recommender.metrics import ndcg
from recommender.ranking import pad_left

_MAX_COMPARED = 1000


class Verdict(Enum):
    """The answer, and the exit code it stands for."""

    PASS = 0
    FAIL = 1
    UNFIT = 3
    UNCLEAR = 4
    NO_BASE = 5

    @property
    def exit_code(self) -> int:
        """A gate that cannot tell, or has nothing to compare with, warns and lets pass."""
        return 0 if self in (Verdict.UNCLEAR, Verdict.NO_BASE) else self.value


@dataclass(frozen=True)
class Counted:
    """A ratio of head to base that is no measurement of time."""

    metric: str
    ratio: float
    budget: float
    within: bool


@dataclass(frozen=True)
class Outcome:
    """What a check found."""

    verdict: Verdict
    judged: Sequence[Judged]
    control: dict[str, Estimate]
    reason: str
    groups: int
    seconds: float
    counted: Sequence[Counted] = field(default=())
    overlap: float | None = None


def check_time(head: Side, base: Side, histories: Path, section: GateSection) -> tuple[Outcome, Samples]:
    """The verdict on latency and throughput, with what was measured."""
    started = time.monotonic()
    budgets = {name: budget for name in (LATENCY, THROUGHPUT) if (budget := getattr(section.budgets, name))}
    samples, verdict, judged, reason = Samples(), None, [], ""
    while verdict is None:
        samples = samples.extended(measure(head, base, histories, section, section.groups, samples.groups))
        judged, reason = judge(samples.head, budgets, section), unfit(samples.control, section)
        if slower := {entry.metric for entry in judged if entry.finding is Finding.SLOWER and not reason}:
            again = measure(head, base, histories, section, section.groups, samples.groups)
            found = judge(again.head, budgets, section)
            confirmed = slower & {entry.metric for entry in found if entry.finding is Finding.SLOWER}
            samples = samples.extended(again)
            judged, reason = judge(samples.head, budgets, section), unfit(samples.control, section)
            if confirmed and not reason:
                verdict = Verdict.FAIL
        if verdict is None and not reason and all(entry.finding is Finding.WITHIN for entry in judged):
            verdict = Verdict.PASS
        if verdict is None and samples.groups >= section.max_groups:
            verdict = Verdict.UNFIT if reason else Verdict.UNCLEAR
    if verdict is not Verdict.FAIL:  # what was not confirmed is not over its budget
        judged = [replace(e, finding=Finding.UNCLEAR) if e.finding is Finding.SLOWER else e for e in judged]
    control = {name: estimate(values, 1.0, section.resamples) for name, values in samples.control.items()}
    return Outcome(verdict, judged, control, reason, samples.groups, time.monotonic() - started), samples


def check(
    head: Side, base: Side, histories: list[np.ndarray], targets: np.ndarray | None, folder: Path, section: GateSection
) -> Outcome:
    """The whole verdict. `targets` are the histories' next items (item_index); None: base's first item of each."""
    started = time.monotonic()
    whole_file, history_file = folder / "whole.npy", folder / "histories.npy"
    np.save(whole_file, pad_left(histories[:_MAX_COMPARED]), allow_pickle=False)
    np.save(history_file, pad_left(histories, HISTORY_LENGTH), allow_pickle=False)
    head_NK, base_NK = (ranked(side, whole_file, section.num_threads) for side in (head, base))
    timed, samples = check_time(head, base, history_file, section)
    counted, budgets = [], section.budgets
    if budgets.peak_rss:
        ratio_G = samples.peak_rss[:, 0] / samples.peak_rss[:, 1]
        counted.append(_at_most("peak_rss", float(np.median(ratio_G)), budgets.peak_rss))
    if budgets.artifact_bytes:
        counted.append(
            _at_most("artifact_bytes", head.graph.stat().st_size / base.graph.stat().st_size, budgets.artifact_bytes)
        )
    if budgets.min_ndcg:
        ratio = _ndcg_ratio(head_NK, base_NK, base_NK[:, 0] if targets is None else targets[:_MAX_COMPARED])
        counted.append(Counted("ndcg_at_10", ratio, budgets.min_ndcg, ratio >= budgets.min_ndcg))
    verdict = timed.verdict if all(entry.within for entry in counted) else Verdict.FAIL
    shared, seconds = float(overlap(head_NK, base_NK).mean()), time.monotonic() - started
    return replace(timed, verdict=verdict, seconds=seconds, counted=tuple(counted), overlap=shared)


def _at_most(metric: str, ratio: float, budget: float) -> Counted:
    return Counted(metric, ratio, budget, ratio <= budget)


def _ndcg_ratio(head_NK: np.ndarray, base_NK: np.ndarray, target_N: np.ndarray) -> float:
    """NDCG@10 of head over base; 1 where base has none."""
    head_N, base_N = (ndcg(target_ranks(top_NK, target_N), 10) for top_NK in (head_NK, base_NK))
    return float(head_N.mean() / base_N.mean()) if base_N.any() else 1.0
