"""`recdistill bench prove-gate`: how often the gate is right, by running it where the answer is known.

Identical sides (A/A) must not fail; sides slowed down on purpose must. Each kind runs idle and beside a CPU hog, in an order
that was drawn beforehand. Every run is a whole check, memory, bytes and lists included. The number of runs is fixed by PLAN,
the ledger resumes, and another gate (its code, PLAN or the recipe's section) starts a new one. Unfit and unclear runs are
counted, and are misses where a slow-down was planted. Beside every A/A run stands what a plain comparison of two processes,
one after the other, would have said.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.stats import beta

from benchmark.environment import environment
from benchmark.gate.check import Verdict, check
from benchmark.gate.checkpoint import drawn_checkpoint
from benchmark.gate.command import REPOSITORY
from benchmark.gate.config import GateSection
from benchmark.gate.measure import HISTORY_LENGTH, Side, typical_time
from benchmark.gate.revision import UsageError, exported
from foundation import console
from foundation.artifact import write_atomically
from foundation.content import ContentError, read_json
from foundation.failure import first_line
from recommender.config import StudentSection
from recommender.data import load_dataset
from recommender.ranking import pad_left
from recommender.split import build_sequences

_CODE = ("config.py", "worker.py", "measure.py", "verdict.py", "check.py", "prove.py", "checkpoint.py")
_NAIVE_CALLS = 1000
_BUDGET = 1.05  # of the A/A runs that are counted together; others are tighter


@dataclass(frozen=True)
class Kind:
    """One kind of run."""

    slowdown: float
    budget: float
    hog: bool


class _Ratios(BaseModel):
    """Estimates of head over base."""

    model_config = ConfigDict(extra="forbid", strict=True)

    latency_p50: float
    throughput_time: float


class _Run(BaseModel):
    """One run in the ledger."""

    model_config = ConfigDict(extra="forbid", strict=True)

    slowdown: float
    budget: float
    hog: bool
    verdict: Literal["PASS", "FAIL", "UNFIT", "UNCLEAR"]
    seconds: float
    groups: int
    ratios: _Ratios
    counted: dict[str, float]
    faster: bool
    reason: str
    hardware: str
    naive_ratio: float = 0.0  # of A/A runs alone


class _Ledger(BaseModel):
    gate_sha256: str
    runs: list[_Run]


PLAN = {
    Kind(0.0, 1.05, hog=False): 150,
    Kind(0.0, 1.05, hog=True): 150,
    Kind(0.0, 1.02, hog=False): 20,
    Kind(0.10, 1.05, hog=False): 60,
    Kind(0.05, 1.02, hog=False): 60,
    Kind(0.03, 1.02, hog=False): 10,
    Kind(0.10, 1.05, hog=True): 10,
    Kind(0.05, 1.02, hog=True): 10,
    Kind(0.03, 1.02, hog=True): 10,
}


def prove_gate(
    shape: StudentSection, section: GateSection, ledger_file: Path, work: Path, max_minutes: float
) -> dict[str, Any]:
    """Run what the plan still lacks (for `max_minutes`, 0 = all), write the ledger after every run, return its summary."""
    work = work.resolve()
    student, data = drawn_checkpoint(shape, section.num_items, work)
    graph = exported("the gate", REPOSITORY, sys.executable, student.path, data.path, work / "graph-prove")
    sequences = build_sequences(load_dataset(data))
    histories = [sequences.history(u, "test") for u in sequences.evaluated_users]
    side, key = Side("the gate", graph, REPOSITORY), _key(shape, section)
    ledger = _begin(ledger_file, key)
    schedule = [kind for kind, count in PLAN.items() for _ in range(count)]
    random.Random(0).shuffle(schedule)
    until = time.monotonic() + max_minutes * 60 if max_minutes else float("inf")
    for number, kind in enumerate(schedule):
        if number < len(ledger["runs"]):
            continue
        if time.monotonic() > until:
            break
        ledger["runs"].append(_run(kind, side, histories, work, section))
        _write(ledger, ledger_file)
        console.say(f"run {number + 1} of {len(schedule)}: {json.dumps(ledger['runs'][-1])}")
    _write(ledger, ledger_file)
    return {name: value for name, value in ledger.items() if name != "runs"}


def _run(kind: Kind, side: Side, histories: list[np.ndarray], work: Path, section: GateSection) -> dict[str, Any]:
    budgets = section.budgets.model_copy(update={"latency_p50": kind.budget, "throughput_time": kind.budget})
    section = section.model_copy(update={"budgets": budgets})
    with _hog(kind.hog):
        outcome = check(replace(side, slowdown=kind.slowdown), side, histories, None, work, section)
        found = {
            **asdict(kind),
            "verdict": outcome.verdict.name,
            "seconds": round(outcome.seconds, 1),
            "groups": outcome.groups,
            "ratios": {entry.metric: round(entry.estimate.ratio, 4) for entry in outcome.judged},
            "counted": {entry.metric: round(entry.ratio, 4) for entry in outcome.counted},
            "faster": any(entry.faster for entry in outcome.judged),
            "reason": outcome.reason,
            "hardware": _hardware(),
        }
        if not kind.slowdown:
            served = work / "served.npy"
            np.save(served, pad_left(histories, HISTORY_LENGTH), allow_pickle=False)
            times = [typical_time(side, served, section, _NAIVE_CALLS) for _ in range(2)]
            found["naive_ratio"] = round(times[1] / times[0], 4)
    return found


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures a reader asks for; verdicts of FAIL are alarms on A/A runs and catches on the others."""
    same = [run for run in runs if not run["slowdown"] and run["budget"] == _BUDGET]
    tight = [run for run in runs if not run["slowdown"] and run["budget"] != _BUDGET]
    alarms, tight_alarms = (sum(run["verdict"] == Verdict.FAIL.name for run in own) for own in (same, tight))
    naive = [run["naive_ratio"] for run in runs if not run["slowdown"]]
    planted = []
    for kind in PLAN:
        own = [run for run in runs if run["slowdown"] and {name: run[name] for name in asdict(kind)} == asdict(kind)]
        if own:
            caught = sum(run["verdict"] == Verdict.FAIL.name for run in own)
            planted.append({**asdict(kind), "runs": len(own), "caught": caught, **_unsettled(own)})
    return {
        "runs_done": len(runs),
        "runs_planned": sum(PLAN.values()),
        "aa_runs": len(same),
        "aa_false_alarms": alarms,
        "aa_upper95": upper95(alarms, len(same)),
        "aa_reported_faster": sum(run["faster"] for run in same),
        "aa_estimates_above_1": sum(run["ratios"]["latency_p50"] > 1 for run in same),
        "aa_unfit": sum(run["verdict"] == Verdict.UNFIT.name for run in same),
        "aa_inconclusive": sum(run["verdict"] == Verdict.UNCLEAR.name for run in same),
        "aa_idle": _unsettled([run for run in same if not run["hog"]]),
        "aa_beside_hog": _unsettled([run for run in same if run["hog"]]),
        "aa_tight": _unsettled(tight) | {"false_alarms": tight_alarms, "upper95": upper95(tight_alarms, len(tight))},
        "planted": planted,
        "naive_false_alarm_rate": sum(ratio > _BUDGET for ratio in naive) / len(naive) if naive else None,
        "naive_speedup_rate": sum(ratio < 1 / _BUDGET for ratio in naive) / len(naive) if naive else None,
        "median_verdict_s": statistics.median(run["seconds"] for run in runs) if runs else None,
    }


def upper95(events: int, trials: int) -> float | None:
    """One-sided 95% upper bound of a rate (Clopper and Pearson, 1934)."""
    return float(beta.ppf(0.95, events + 1, trials - events)) if trials > events else None


def _unsettled(runs: list[dict[str, Any]]) -> dict[str, int]:
    count = {verdict: sum(run["verdict"] == verdict.name for run in runs) for verdict in (Verdict.UNFIT, Verdict.UNCLEAR)}
    return {"runs": len(runs), "unfit": count[Verdict.UNFIT], "inconclusive": count[Verdict.UNCLEAR]}


def _key(shape: StudentSection, section: GateSection) -> str:
    content = "".join((Path(__file__).parent / name).read_text() for name in _CODE)
    return hashlib.sha256((content + shape.model_dump_json() + section.model_dump_json()).encode()).hexdigest()


def _begin(ledger_file: Path, key: str) -> dict[str, Any]:
    if not ledger_file.exists():
        return {"gate_sha256": key, "runs": []}
    try:
        content = read_json(ledger_file)
        if isinstance(content, dict) and content.get("gate_sha256", key) != key:  # whatever that gate wrote of its runs
            console.say(f"{ledger_file} is of another gate; a new one begins")
            return {"gate_sha256": key, "runs": []}
        found = _Ledger.model_validate(content)
    except (ContentError, ValidationError) as error:
        raise UsageError(f"{ledger_file} is no ledger of the gate ({first_line(str(error))}); move it away") from None
    return {"gate_sha256": key, "runs": [run.model_dump(exclude_unset=True) for run in found.runs]}


def _write(ledger: dict[str, Any], ledger_file: Path) -> None:
    ledger |= summary(ledger["runs"]) | {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": "recdistill bench prove-gate",
        "hardware": Counter(run["hardware"] for run in ledger["runs"]),
    }
    ledger_file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(ledger_file, (json.dumps(ledger, indent=1, sort_keys=True) + "\n").encode())


def _hardware() -> str:
    machine = environment(1)
    return f"{machine['num_cpus']} cores, {machine['cpu']}, {', '.join(machine['cpu_flags'])}"


_HOG = """
import os, random, time
parent = os.getppid()
while os.getppid() == parent:
    until = time.monotonic() + random.expovariate(2)
    while time.monotonic() < until:
        pass
    time.sleep(random.expovariate(2))
"""


@contextmanager
def _hog(wanted: bool) -> Iterator[None]:
    """As many processes as CPUs, each busy in bursts of half a second on average and idle as long."""
    command = [sys.executable, "-P", "-c", _HOG]
    hogs = [subprocess.Popen(command) for _ in range((os.cpu_count() or 1) if wanted else 0)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
