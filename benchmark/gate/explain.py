"""What a check found, for people (one screen), for CI systems (JUnit XML) and for GitHub's step summary (Markdown)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from benchmark.gate.check import Outcome, Verdict
from benchmark.gate.verdict import Finding

_ADVICE = {
    Verdict.PASS: "every metric is within its budget",
    Verdict.FAIL: "over a budget; find what made it so, or raise the budget with a reason in the commit",
    Verdict.UNCLEAR: "not settled by as many processes as allowed; this is a warning and no failure: run it again, or look",
    Verdict.UNFIT: "this machine cannot judge now; run it again, or on a quieter one",
}
_WORDS = {Finding.WITHIN: "ok", Finding.SLOWER: "FAIL", Finding.UNCLEAR: "?"}


@dataclass(frozen=True)
class Line:
    """One metric as it is shown."""

    metric: str
    word: str
    found: str
    allowed: str
    note: str = ""


def lines(outcome: Outcome) -> Iterator[Line]:
    """Every gated metric; where nothing could be compared, one line that says so. An unfit machine's times settle nothing."""
    if not outcome.groups:
        yield Line("served", "FAIL" if outcome.verdict is Verdict.FAIL else "?", outcome.reason, "both must be served")
    for entry in outcome.judged:
        found = f"{entry.estimate.ratio:.3f} [{entry.estimate.low:.3f}, {entry.estimate.high:.3f}]"
        word = "?" if outcome.reason else _WORDS[entry.finding]
        yield Line(entry.metric, word, found, f"at most {entry.budget:.2f}", "faster" if entry.faster else "")
    for entry in outcome.counted:
        bound = "at least" if entry.metric.startswith("ndcg") else "at most"
        yield Line(entry.metric, "ok" if entry.within else "FAIL", f"{entry.ratio:.4f}", f"{bound} {entry.budget:.2f}")


def text(outcome: Outcome, head: str, base: str) -> str:
    """One screen: head / base of every metric, the machine's own noise, the verdict and what to do."""
    if not outcome.groups:
        return f"{head} against {base}: nothing could be compared\n{outcome.verdict.name}: {outcome.reason}"
    shown = [f"{head} against {base}: ratios head / base [95% interval]"]
    for line in lines(outcome):
        shown.append(f"  {line.word:<5}{line.metric:<17}{line.found:<24}{line.allowed:<14}{line.note}".rstrip())
    noise = ", ".join(f"{name} {own.ratio:.3f} [{own.low:.3f}, {own.high:.3f}]" for name, own in outcome.control.items())
    shown += [f"  base against itself: {noise}"]
    if outcome.overlap is not None:
        shown += [f"  top-20 lists of head and base have {outcome.overlap:.1%} of their items in common"]
    shown += [f"  {outcome.groups} groups of three fresh processes, {outcome.seconds:.0f} s"]
    because = f" ({outcome.reason})" if outcome.reason else ""
    return "\n".join([*shown, f"{outcome.verdict.name}: {_ADVICE[outcome.verdict]}{because}"])


def markdown(outcome: Outcome, head: str, base: str) -> str:
    """The same as a table."""
    rows = [f"| {line.metric} | {line.word} | {line.found} | {line.allowed} | {line.note} |" for line in lines(outcome)]
    table = "\n".join(["| metric | | head / base | allowed | |", "|---|---|---|---|---|", *rows])
    advice = _ADVICE[outcome.verdict] if outcome.groups else "nothing was compared"
    return f"### Latency gate: {outcome.verdict.name}\n\n`{head}` against `{base}`. {advice}.\n\n{table}\n"


def junit(outcome: Outcome) -> bytes:
    """A test suite with a case for every metric."""
    shown = list(lines(outcome))
    failures = sum(line.word == "FAIL" for line in shown)
    suite = ElementTree.Element(
        "testsuite",
        name="check-latency",
        tests=str(len(shown)),
        failures=str(failures),
        skipped=str(sum(line.word == "?" for line in shown)),
        time=f"{outcome.seconds:.1f}",
    )
    for line in shown:
        case = ElementTree.SubElement(suite, "testcase", classname="check-latency", name=line.metric)
        if line.word == "FAIL":
            ElementTree.SubElement(case, "failure", message=f"{line.found}, {line.allowed}")
        elif line.word == "?":
            ElementTree.SubElement(case, "skipped", message=f"{outcome.verdict.name}: {line.found}, {line.allowed}")
    return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)


def figures(outcome: Outcome) -> dict[str, Any]:
    """For machines and for the history file."""
    return {
        "verdict": outcome.verdict.name,
        "groups": outcome.groups,
        "seconds": round(outcome.seconds, 1),
        "reason": outcome.reason,
        "overlap": outcome.overlap,
        "metrics": {
            **{
                entry.metric: {
                    "ratio": entry.estimate.ratio,
                    "ci95": [entry.estimate.low, entry.estimate.high],
                    "budget": entry.budget,
                    "finding": entry.finding.name,
                    "faster": entry.faster,
                }
                for entry in outcome.judged
            },
            **{e.metric: {"ratio": e.ratio, "budget": e.budget, "within": e.within} for e in outcome.counted},
        },
        "control": {name: {"ratio": own.ratio, "ci95": [own.low, own.high]} for name, own in outcome.control.items()},
    }
