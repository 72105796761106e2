"""`recdistill bench check-latency`: make both sides, check, report."""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.gate.check import Outcome, check
from benchmark.gate.checkpoint import drawn_checkpoint
from benchmark.gate.config import GateSection
from benchmark.gate.explain import figures, junit, markdown, text
from benchmark.gate.measure import Side
from benchmark.gate.revision import NoGate, UsageError, checked_out, exported, python_of, require_gate, resolve
from export.onnx_graph import ITEM_IDS
from foundation import console
from foundation.artifact import MANIFEST, Artifact, load, write_atomically
from recommender.config import StudentSection
from recommender.data import load_dataset
from recommender.runtimes import GRAPH
from recommender.split import build_sequences

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Asked:
    """What is to be compared: a git revision or an artefact with a graph, against this checkout or another artefact."""

    base: str
    head: str = ""
    student: Path | None = None
    data: Path | None = None
    junit: Path | None = None
    history: Path | None = None


def check_latency(asked: Asked, shape: StudentSection, section: GateSection, work: Path) -> tuple[int, dict[str, Any]]:
    """(exit code, figures). Everything that is made on the way is kept in `work`, and used again."""
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if (asked.student is None) != (asked.data is None):
        raise UsageError("--student and --dataset go together: the checkpoint, and the data whose items it ranks")
    if asked.head and not _is_artefact(asked.base):
        raise UsageError(f"--head names an artefact, and {asked.base} is none: this checkout is compared with a git revision")
    if asked.student and asked.data:
        student, data = load(asked.student.resolve()), load(asked.data.resolve(), "dataset")
    else:
        student, data = drawn_checkpoint(shape, _num_items(asked.base) or section.num_items, work)
    sequences = build_sequences(load_dataset(data))
    users = sequences.evaluated_users
    histories = [sequences.history(u, "test") for u in users]
    targets = sequences.targets(users, "test") if asked.student else None
    try:
        base, head = _sides(asked, student, data, work)
    except NoGate as error:
        console.say(f"warning: {error}; nothing is compared")
        return 0, {"verdict": "NO BASE", "reason": str(error)}
    for file in (asked.junit, asked.history):
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
    console.say(f"measuring {head.name} against {base.name}: {section.groups} to {section.max_groups} groups of processes")
    with tempfile.TemporaryDirectory(dir=work) as folder:
        outcome = check(head, base, histories, targets, Path(folder), section)
    _publish(asked, outcome, head.name, base.name)
    return outcome.verdict.exit_code, {"head": head.name, "base": base.name, **figures(outcome)}


def _sides(asked: Asked, student: Artifact, data: Artifact, work: Path) -> tuple[Side, Side]:
    """(base, head)"""
    if _is_artefact(asked.base):
        if not asked.head:
            raise UsageError(f"{asked.base} is an artefact; name the one to compare with it: --head DIR (HEAD=DIR with make)")
        return _artefact_side(Path(asked.base)), _artefact_side(Path(asked.head))
    commit = resolve(asked.base, REPOSITORY)
    checkout = checked_out(commit, REPOSITORY, work)
    require_gate(checkout)
    python = python_of(checkout, REPOSITORY)
    graphs = {}
    for name, folder, interpreter in (("base", checkout, python), ("head", REPOSITORY, python_of(REPOSITORY, REPOSITORY))):
        console.say(f"exporting the checkpoint with {name} ({folder.name})")
        graphs[name] = exported(folder, interpreter, student.path, data.path, work / f"graph-{name}")
    base = Side(f"{asked.base} ({commit[:12]})", graphs["base"], checkout, python)
    return base, Side("this checkout", graphs["head"], REPOSITORY)


def _is_artefact(base: str) -> bool:
    return (Path(base) / MANIFEST).is_file()


def _num_items(base: str) -> int:
    """The size of the catalogue an artefact ranks; 0 for a git revision."""
    return len(json.loads(load(Path(base)).file(ITEM_IDS).read_text())) if _is_artefact(base) else 0


def _artefact_side(folder: Path) -> Side:
    return Side(str(folder), load(folder.resolve()).file(GRAPH), REPOSITORY)


def _publish(asked: Asked, outcome: Outcome, head: str, base: str) -> None:
    print(text(outcome, head, base))
    if asked.junit:
        write_atomically(asked.junit, junit(outcome))
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a") as stream:
            stream.write(markdown(outcome, head, base))
    if asked.history:
        line = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "head": head, "base": base, **figures(outcome)}
        with asked.history.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
