"""`recdistill bench check-latency`: make both sides, check, report."""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.environment import environment
from benchmark.gate.check import Outcome, Verdict, check
from benchmark.gate.checkpoint import drawn_checkpoint
from benchmark.gate.config import GateSection
from benchmark.gate.explain import figures, junit, markdown, text
from benchmark.gate.measure import GateError, Side
from benchmark.gate.revision import NoGate, UsageError, checked_out, checkout_name, exported, python_of, require_gate, resolve
from benchmark.gate.worker import K
from export.config import ExportSection
from foundation import console
from foundation.artifact import MANIFEST, Artifact, Unavailable, load, write_atomically
from foundation.failure import is_machine_error
from recommender.config import StudentSection
from recommender.data import load_dataset
from recommender.runtimes.base import GRAPH, ITEM_IDS
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


def check_latency(
    asked: Asked, shape: StudentSection, section: GateSection, work: Path, export: ExportSection | None = None
) -> tuple[int, dict[str, Any]]:
    """(exit code, figures). Everything that is made on the way is kept in `work`, and used again.

    Revisions export as `export` says.
    """
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if (asked.student is None) != (asked.data is None):
        raise UsageError("--student and --dataset go together: the checkpoint, and the data whose items it ranks")
    if asked.head and not _is_artefact(asked.base):
        raise UsageError(f"--head names an artefact, and {asked.base} is none: this checkout is compared with a git revision")
    head_name, base_name = _names(asked)
    for file in (asked.junit, asked.history):
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = ""
    try:
        if asked.student and asked.data:
            student, data = load(asked.student.resolve()), load(asked.data.resolve(), "dataset")
        else:
            student, data = drawn_checkpoint(shape, _num_items(asked.base) or section.num_items, work)
        checkpoint = student.digest[:12]
        sequences = build_sequences(load_dataset(data))
        users = sequences.evaluated_users
        histories = [sequences.history(u, "test") for u in users]
        targets = sequences.targets(users, "test") if asked.student else None
        options = _options(export or ExportSection(), drawn=not asked.student)
        head, base = _sides(asked, head_name, base_name, student, data, work, options)
        console.say(f"measuring {head_name} against {base_name}: {section.groups} to {section.max_groups} groups of processes")
        with tempfile.TemporaryDirectory(dir=work) as folder:
            outcome = check(head, base, histories, targets, Path(folder), section)
    except (NoGate, GateError, Unavailable, OSError, MemoryError) as error:
        if isinstance(error, OSError) and not is_machine_error(error):
            raise
        outcome = not_compared(error, head_name)
    _publish(asked, outcome, head_name, base_name, checkpoint)
    return outcome.verdict.exit_code, {"head": head_name, "base": base_name, **figures(outcome)}


def not_compared(error: Exception, head: str) -> Outcome:
    """A head that cannot be exported or served has failed; a base that cannot, or a machine, leaves nothing to judge by."""
    by_head = isinstance(error, GateError) and error.side == head and not is_machine_error(error)
    verdict = Verdict.NO_BASE if isinstance(error, NoGate) else Verdict.FAIL if by_head else Verdict.UNFIT
    return Outcome(verdict, [], {}, str(error) or type(error).__name__, groups=0, seconds=0.0)


def _options(export: ExportSection, drawn: bool) -> list[str]:
    """What of the recipe's export is not the default, as KEY=VALUE: a revision that does not know it is not asked in vain.

    The gate asks for `K` items at least. A drawn checkpoint has no text to be asked for by, and no table of low rank for two
    stages: its lists may differ from PyTorch's, not from one revision to the other.
    """
    default, asked = ExportSection().of_graph(), export.of_graph()
    asked["k"] = max(asked["k"], K)
    if drawn:
        asked["inputs"] = [name for name in asked["inputs"] if name != "query"]
        asked["min_overlap"] = 0.0 if export.first_stage_dims else asked["min_overlap"]
    return [f"export.{name}={json.dumps(value)}" for name, value in asked.items() if value != default[name]]


def _names(asked: Asked) -> tuple[str, str]:
    """(head, base) as they are shown."""
    if _is_artefact(asked.base):
        if not asked.head:
            raise UsageError(f"{asked.base} is an artefact; name the one to compare with it: --head DIR (HEAD=DIR with make)")
        return asked.head, asked.base
    return "this checkout", f"{asked.base} ({resolve(asked.base, REPOSITORY)[:12]})"


def _sides(
    asked: Asked, head: str, base: str, student: Artifact, data: Artifact, work: Path, options: list[str]
) -> tuple[Side, Side]:
    """(head, base), of these names."""
    if _is_artefact(asked.base):
        head_graph, base_graph = (load(Path(folder).resolve()).file(GRAPH) for folder in (asked.head, asked.base))
        return Side(head, head_graph, REPOSITORY), Side(base, base_graph, REPOSITORY)
    checkout = checked_out(resolve(asked.base, REPOSITORY), REPOSITORY, work)
    require_gate(checkout)

    def side(name: str, folder: Path, out: str) -> Side:
        console.say(f"exporting the checkpoint with {name}")
        python = python_of(folder, REPOSITORY)
        return Side(name, exported(name, folder, python, student.path, data.path, work / out, options), folder, python)

    base_side = side(base, checkout, "graph-base")
    return side(head, REPOSITORY, "graph-head"), base_side


def _is_artefact(base: str) -> bool:
    return (Path(base) / MANIFEST).is_file()


def _num_items(base: str) -> int:
    """The size of the catalogue an artefact ranks; 0 for a git revision."""
    return len(json.loads(load(Path(base)).file(ITEM_IDS).read_text())) if _is_artefact(base) else 0


def _publish(asked: Asked, outcome: Outcome, head: str, base: str, checkpoint: str) -> None:
    print(text(outcome, head, base))
    if os.environ.get("GITHUB_ACTIONS") and outcome.verdict not in (Verdict.PASS, Verdict.FAIL):  # nothing will be red
        print(f"::warning title=Latency gate {outcome.verdict.name}::{text(outcome, head, base).splitlines()[-1]}")
    if asked.junit:
        write_atomically(asked.junit, junit(outcome))
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a") as stream:
            stream.write(markdown(outcome, head, base))
    if asked.history:
        when = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": checkout_name(REPOSITORY)}
        where = {"cpu": environment(1)["cpu"], "checkpoint": checkpoint}
        line = when | where | {"head": head, "base": base, **figures(outcome)}
        with asked.history.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
