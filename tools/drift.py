"""`make drift HISTORY=FILE`: has a metric of the latency gate drifted, a little with every change, while each check passed?

The file is what `recdistill bench check-latency BASE --history FILE` appends to; checks against one fixed base (a release, say)
belong together, because their ratios then share a yardstick that is measured anew beside each of them. Change points are found
by Apache Otava (E-divisive means with Student's t test: Matteson and James, 2014; Fleming et al., 2023), which pins an older
numpy and therefore has an environment of its own.

Exit code 0: none that makes a metric worse; 1: at least one; 2: nothing that could be analysed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

MIN_CHECKS = 10
MIN_CHANGE = 0.01  # of the mean; smaller changes are left out


class HistoryError(ValueError):
    """A history that cannot be analysed; the message says why."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("history", type=Path, help="JSON lines of `recdistill bench check-latency --history`")
    parser.add_argument("--base", default="", help="the base whose checks are analysed (default: that of the last line)")
    arguments = parser.parse_args()
    try:
        checks = of_one_base(read(arguments.history), arguments.base)
    except (HistoryError, OSError) as error:
        print(f"[drift] error: {error}", file=sys.stderr)
        return 2
    found = [point for name in metrics(checks) for point in change_points(name, checks)]
    print(f"{len(checks)} checks against {checks[-1]['base']}, {checks[0]['date']} to {checks[-1]['date']}")
    for point in found:
        print("  {metric}: {before:.4f} -> {after:.4f} ({change:+.1%}, p = {p:.1e}) at {date} {commit}".format(**point))
    print("" if found else "  no change point\n", end="")
    print(json.dumps({"base": checks[-1]["base"], "checks": len(checks), "change_points": found}))
    return int(any(point["worse"] for point in found))


def read(history: Path) -> list[dict[str, Any]]:
    """The checks in the file, each with `date`, `base`, `commit`, `checkpoint` and `ratios`.

    Those that compared nothing are left out, and what a machine that could not judge has timed.
    """
    checks = []
    for number, line in enumerate(history.read_text(encoding="utf-8").splitlines(), 1):
        try:
            check = json.loads(line)
            unfit = bool(check.get("reason"))
            ratios = {
                name: float(metric["ratio"]) for name, metric in check["metrics"].items() if not (unfit and "ci95" in metric)
            }
            kept = ("base", "date", "commit", "checkpoint")
            checks.append({name: str(check.get(name, "")) for name in kept} | {"ratios": ratios})
            datetime.fromisoformat(checks[-1]["date"])
            if not all(map(math.isfinite, ratios.values())):
                raise ValueError("a ratio is not finite")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise HistoryError(f"{history}, line {number} is no check of the gate ({type(error).__name__}: {error})") from None
    return [check for check in checks if check["ratios"]]


def of_one_base(checks: list[dict[str, Any]], base: str) -> list[dict[str, Any]]:
    """The checks against `base` (or that of the last one) of its last checkpoint, in the order of their dates."""
    bases = sorted({check["base"] for check in checks})
    if not checks or (base and base not in bases):
        raise HistoryError(f"no check against {base or 'any base'}; there are checks against: {', '.join(bases) or 'none'}")
    wanted = base or checks[-1]["base"]
    against = sorted((check for check in checks if check["base"] == wanted), key=lambda check: check["date"])
    own = [check for check in against if check["checkpoint"] in ("", against[-1]["checkpoint"])]  # older ones do not say
    if others := len(against) - len(own):
        print(f"[drift] {others} checks of another checkpoint (another shape or catalogue) are left out", file=sys.stderr)
    if len(own) < MIN_CHECKS:
        raise HistoryError(f"the checks against {wanted} are too few: {len(own)}, and {MIN_CHECKS} are needed")
    return own


def metrics(checks: list[dict[str, Any]]) -> list[str]:
    """What was measured often enough to be analysed; the rest is said, not dropped in silence."""
    counts = Counter(name for check in checks for name in check["ratios"])
    for name in (name for name, count in sorted(counts.items()) if count < MIN_CHECKS):
        print(f"[drift] {name} is left out: measured {counts[name]} times, {MIN_CHECKS} are needed", file=sys.stderr)
    return sorted(name for name, count in counts.items() if count >= MIN_CHECKS)


def change_points(name: str, checks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where the level of a metric changed. A ratio to the base is better where it is lower, that of NDCG where it is higher."""
    from otava.series import AnalysisOptions, Metric, Series  # pyright: ignore[reportMissingImports]

    own, direction = [check for check in checks if name in check["ratios"]], 1 if name.startswith("ndcg") else -1
    times = [int(datetime.fromisoformat(check["date"]).timestamp()) for check in own]
    ratios = [check["ratios"][name] for check in own]
    series = Series("check-latency", None, times, {name: Metric(direction, 1.0)}, {name: ratios}, {})
    options = AnalysisOptions()
    options.min_magnitude = MIN_CHANGE
    return [_described(name, point, own[point.index], direction) for point in series.analyze(options).change_points[name]]


def _described(name: str, point: Any, check: dict[str, Any], direction: int) -> dict[str, Any]:
    before, after = float(point.mean_before()), float(point.mean_after())
    return {
        "metric": name,
        "date": check["date"],
        "commit": check["commit"],
        "before": before,
        "after": after,
        "change": after / before - 1,
        "p": float(point.pvalue()),
        "worse": direction * (after - before) < 0,
    }


if __name__ == "__main__":
    sys.exit(main())
