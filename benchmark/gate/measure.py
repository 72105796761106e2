"""Groups of fresh processes, measured in interleaved blocks.

A group is three processes: base, head, and base once more as its own control. Only one works at a time. In every step all
three serve the same requests, base between the other two, so that each ratio compares neighbours in time. Groups alternate in
order (head base control, control base head), so that a drift of the machine cancels; steps do not, since a process that works
twice in a row finds its caches warm and looks 2% faster than the one in the middle, which never does (docs/log.md).
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from benchmark.gate.config import GateSection

WORKER = Path(__file__).with_name("worker.py")
LATENCY, THROUGHPUT = "latency_p50", "throughput_time"
MIN_CALLS = 5
HISTORY_LENGTH = 50  # items of every history that is served
_LIMIT_S = 120


class GateError(RuntimeError):
    """A side of the comparison that cannot be exported or served; the message says which and why."""

    def __init__(self, side: str, reason: str) -> None:
        super().__init__(f"{side} {reason}")
        self.side = side


@dataclass(frozen=True)
class Side:
    """One revision's exported graph, and what serves it."""

    name: str
    graph: Path
    checkout: Path
    python: str = sys.executable
    slowdown: float = 0.0  # planted: the share by which each call is drawn out


@dataclass
class Samples:
    """ln of ratios to base, float64[groups, blocks] each, and the peak memory of every process."""

    head: dict[str, np.ndarray] = field(default_factory=dict)
    control: dict[str, np.ndarray] = field(default_factory=dict)
    peak_rss: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))  # bytes of (head, base)

    def extended(self, other: Samples) -> Samples:
        """Both together."""

        def joined(one: Mapping[str, np.ndarray], two: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: np.concatenate([one[name], values]) if name in one else values for name, values in two.items()}

        return Samples(
            joined(self.head, other.head),
            joined(self.control, other.control),
            np.concatenate([self.peak_rss, other.peak_rss]),
        )

    @property
    def groups(self) -> int:
        return len(self.peak_rss)


def measure(head: Side, base: Side, histories: Path, section: GateSection, groups: int, first: int = 0) -> Samples:
    """`groups` groups of fresh processes; `first` numbers them, so that their order alternates over a whole check."""
    samples = Samples()
    for number in range(first, first + groups):
        samples = samples.extended(_group(head, base, histories, section, number))
    return samples


def ranked(side: Side, histories: Path, num_threads: int) -> np.ndarray:
    """The lists of every history in the file, item_index int64[N, K], made by the side's own code in a fresh process."""
    with _serving(side, histories, num_threads) as process:
        return np.array(process.ask("rank")["top"])


def typical_time(side: Side, histories: Path, section: GateSection, calls: int) -> float:
    """Seconds of the median call in one fresh process: what a plain measurement sees."""
    with _serving(side, histories, section.num_threads) as process:
        process.ask(f"warm 1 {section.warmup_s}")
        return process.ask(f"run 1 {calls}")["median_s"]


def _group(head: Side, base: Side, histories: Path, section: GateSection, number: int) -> Samples:
    sides = {"head": head, "base": base, "control": base}
    names = ["head", "base", "control"] if number % 2 == 0 else ["control", "base", "head"]
    samples = Samples()
    with ExitStack() as stack:
        processes = {name: stack.enter_context(_serving(sides[name], histories, section.num_threads)) for name in names}
        for metric, batch in ((LATENCY, 1), (THROUGHPUT, section.batch_size)):
            if not getattr(section.budgets, metric):
                continue
            typical_s = {name: processes[name].ask(f"warm {batch} {section.warmup_s}")["median_s"] for name in names}
            calls = max(MIN_CALLS, math.ceil(section.block_s / typical_s["base"]))
            rows = []
            for _ in range(section.blocks):
                rows.append({name: math.log(processes[name].ask(f"run {batch} {calls}")["median_s"]) for name in names})
            for name, found in (("head", samples.head), ("control", samples.control)):
                found[metric] = np.array([[row[name] - row["base"] for row in rows]])
        peaks = {name: processes[name].ask("end")["peak_rss_bytes"] for name in names}
    samples.peak_rss = np.array([[peaks["head"], peaks["base"]]], float)
    return samples


class _Process:
    def __init__(self, side: Side, process: subprocess.Popen[str], said: IO[str]) -> None:
        self.side, self.process, self.said, self.hung = side, process, said, False

    def ask(self, request: str = "") -> dict[str, Any]:
        """The answer to a request; the first, to none, says that the graph is open. Without one in time the process ends."""
        assert self.process.stdin is not None and self.process.stdout is not None
        watchdog = threading.Timer(_LIMIT_S, self._give_up)
        watchdog.start()
        try:
            if request:
                self.process.stdin.write(request + "\n")
                self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            raise GateError(self.side.name, f"cannot serve {self.side.graph}: {self._reason()}") from None
        finally:
            watchdog.cancel()

    def _give_up(self) -> None:
        self.hung = True
        self.process.kill()

    def _reason(self) -> str:
        """What the process said last, or how it ended."""
        if self.hung:
            return f"no answer within {_LIMIT_S} s"
        try:
            code = self.process.wait(5)
        except subprocess.TimeoutExpired:  # what it answered makes no sense, but it lives
            self.process.kill()
            code = 0
        self.said.seek(0)
        said = self.said.read().strip().splitlines()
        if code == -signal.SIGKILL:
            return "out of memory: the kernel ended it"
        return said[-1] if said else f"it ended with code {code} and said nothing"


@contextmanager
def _serving(side: Side, histories: Path, num_threads: int) -> Iterator[_Process]:
    command = [side.python, "-P", str(WORKER), str(side.graph), str(histories), str(num_threads), str(side.slowdown)]
    environment = os.environ | {"PYTHONPATH": str(side.checkout), "OMP_NUM_THREADS": str(num_threads)}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, env=environment, cwd=side.checkout, stderr=said, **pipes)
        try:
            served = _Process(side, process, said)
            served.ask()
            yield served
        finally:
            process.kill()
            process.communicate()
