"""One serving process of the gate. It is run from the head's checkout by the environment of the revision it measures, and
serves a graph through that revision's own `recommender.runtimes.onnxruntime`.

    python -P worker.py GRAPH HISTORIES.npy THREADS SLOWDOWN         (PYTHONPATH = the revision's checkout)

Requests come as lines, answers go out as lines of JSON:

    warm BATCH SECONDS    -> seconds of the median call
    run BATCH CALLS       -> seconds of the median of CALLS calls
    rank                  -> the list of every history, K item_index each
    end                   -> peak resident bytes; the process ends

SLOWDOWN plants a regression: each call is drawn out by that share of its own time (0 = none).
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

K = 20
RANK_BATCH = 64


def main() -> None:
    from recommender.runtimes.onnxruntime import OnnxRecommender

    graph, histories, threads, slowdown = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    recommender, history_NL = OnnxRecommender(graph, threads), np.load(histories, allow_pickle=False)
    gc.disable()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

    def say(value: dict) -> None:
        print(json.dumps(value), file=answers, flush=True)

    def call(batch: int, number: int) -> float:
        first = number * batch % (len(history_NL) - batch + 1)  # the same requests for every side
        history_BL = history_NL[first : first + batch]
        started = time.perf_counter()
        recommender.recommend(history_BL, K)
        ended = time.perf_counter()
        if slowdown:
            until = ended + slowdown * (ended - started)
            while ended < until:
                ended = time.perf_counter()
        return ended - started

    def warm(batch: int, seconds: float) -> dict[str, float]:
        until, times = time.perf_counter() + seconds, [call(batch, 0)]
        while time.perf_counter() < until:
            times.append(call(batch, len(times)))
        return {"median_s": statistics.median(times)}

    def run(batch: int, calls: int) -> dict[str, float]:
        call(batch, 0)  # whoever worked last has left its own data in the caches
        return {"median_s": statistics.median(call(batch, number) for number in range(calls))}

    say({"ready": True})
    for line in sys.stdin:
        command, *values = line.split()
        if command == "end":
            break
        if command == "rank":
            rows = range(0, len(history_NL), RANK_BATCH)
            lists = [recommender.recommend(history_NL[row : row + RANK_BATCH], K)[0] for row in rows]
            say({"top": np.concatenate(lists).tolist()})
            continue
        batch = int(values[0])
        if len(history_NL) < batch:
            history_NL = np.resize(history_NL, (batch, history_NL.shape[1]))
        say(warm(batch, float(values[1])) if command == "warm" else run(batch, int(values[1])))
    say({"peak_rss_bytes": peak_rss_bytes()})


def peak_rss_bytes() -> int:
    """The kernel's high-water mark of this process's resident memory (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
