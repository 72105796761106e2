"""Arms made side by side are what they are one after the other; what fails ends the rest, and says why."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foundation.artifact import Artifact, load, lock
from foundation.failure import explain
from foundation.recipe import load_recipe
from recdistill import parallel
from recdistill.cli import main
from recdistill.parallel import Ended, Task, _sendable, distill_tasks, make_side_by_side
from recdistill.pipeline import Pipeline
from recdistill.recipe import Recipe
from tests.constructed import write_chain_dataset, write_tiny_llm

KEYS = ["seeds=[0, 1]", "distill.ensemble_control=true", "teacher.optim.epochs=1", "student.optim.epochs=2", "num_threads=1"]
KEYS += ["text.student_dims=12"]
ENCODER = ["item_encoder.optim.epochs=1", "teacher.item_init=control-tuned"]
ENCODER += ["targets.members={teacher = 1.0, control-tuned = 1.0}"]
ONE_SEED = ["seeds=[0]", "distill.ensemble_control=false"]


def recipe(*keys: str) -> Recipe:
    return load_recipe(Recipe, Path("recipes/smoke.toml"), [*KEYS, *keys])


def alone_and_those_before(task: Task) -> Iterator[Task]:
    for other in task.after:
        yield from alone_and_those_before(other)
    yield task


def run(task: Task) -> None:
    made = getattr(task.pipeline, task.method)
    if callable(made):
        made(*task.arguments)


def made_by(*tasks: Task) -> set[Path]:
    """Where the artefacts lie that they make, of which there is none at first."""
    fresh = Pipeline(tasks[0].pipeline.recipe, tasks[0].pipeline.runs) if tasks else None
    for task in tasks:
        run(replace(task, pipeline=fresh))
    return set(fresh._made) if fresh else set()


def without_training(self: Pipeline, out: Path, kind: str, *_: Any) -> Artifact:
    """In the place of `Pipeline._make`."""
    return self._made.setdefault(out, Artifact(out, {"kind": kind, "files": {}, "metrics": {"num_layers": 30}}))


@pytest.mark.parametrize(
    "keys",
    [
        [],
        ["targets.seeds=all", "teacher.item_init=random"],
        ["distill.ensemble_control=false", "distill.follow_audit=true"],
        ["targets.members={control-id = 1.0}"],
        ["views={a = {encoder = 'words'}, idle = {}}", "targets.members={teacher = 1.0, view-a = 1.0, view-idle = 0.0}"],
        ["targets.members={teacher = 1.0, ease-text = 1.0, ease-words = 1.0}"],
        ["distill.ensemble_control=false", "targets.members={teacher = 1.0, ease = 1.0}"],
        ["item_encoder.init=random"],  # an encoder in both cases
    ],
)
@pytest.mark.parametrize("encoder", [[], ENCODER])
def test_a_task_makes_one_artefact_after_those_it_needs(
    keys: list[str], encoder: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "_make", without_training)
    folder = [f"data.source={write_chain_dataset(tmp_path / 'chain')}", f"teacher.llm={write_tiny_llm(tmp_path / 'llm')}"]
    of = recipe(*encoder, *folder, *keys)
    tasks, artefact = distill_tasks(Pipeline(of, tmp_path)), dict[Task, Path]()
    assert len(set(tasks)) == len(tasks)
    for number, task in enumerate(tasks):
        assert set(task.after) <= set(tasks[:number]), task
        *before, own = alone_and_those_before(task)
        after_those = made_by(*before, own) - made_by(*before)
        assert len(after_those) == 1, task
        artefact[task] = after_those.pop()
        needed = {artefact[other] for other in task.after if other.method != "audit" or "distill.follow_audit=true" in keys}
        assert needed <= made_by(own), "it waits for nothing that it does not need, but for the audit, which is to be said"
        if task.method == "arm" and task.arguments[0] in ("student", "control-ensemble-kd"):
            assert "audit" in {other.method for other in task.after}


def test_all_that_is_made_one_after_the_other_is_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipeline, "_make", without_training)
    folder = [f"data.source={write_chain_dataset(tmp_path / 'chain')}", f"teacher.llm={write_tiny_llm(tmp_path / 'llm')}"]
    made, expected = (Pipeline(recipe(*ENCODER, *folder), tmp_path) for _ in range(2))
    for task in distill_tasks(made):
        run(task)
    for seed in expected.recipe.seeds:
        for arm in (*expected.controls, "student"):
            expected.arm(arm, seed)
        expected.audit(seed)
    assert set(made._made) == set(expected._made)


def test_side_by_side_is_one_after_the_other(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, llm = write_chain_dataset(tmp_path / "chain", num_users=60), write_tiny_llm(tmp_path / "tiny-llm")
    made = {}
    for jobs in ("1", "3"):
        options = ["--recipe", "recipes/smoke.toml", "--data", str(data), "--teacher", str(llm), "--runs", str(tmp_path / jobs)]
        options += [word for key in (*KEYS, *ENCODER, *ONE_SEED) for word in ("--set", key)]
        assert main(["distill", *options, "--jobs", jobs]) == 0
        folder = tmp_path / jobs / "chain"
        made[jobs] = {
            str(path.parent.relative_to(folder)): {
                name: digest for name, digest in load(path.parent).manifest["files"].items() if name.endswith(".safetensors")
            }
            for path in folder.rglob("manifest.json")
        }
    assert made["1"] == made["3"] and "seed-0/student" in made["3"]
    assert "waiting for another process" not in capfd.readouterr().err, "nothing is begun before what it needs"


def of_chain(folder: Path, *keys: str) -> Pipeline:
    return Pipeline(recipe(f"data.source={write_chain_dataset(folder / 'chain', num_users=60)}", *keys), folder / "runs")


def test_what_fails_ends_the_rest(tmp_path: Path) -> None:
    """The LLM is not there; the data is held by this process, so that who makes it would wait for ever."""
    pipeline = of_chain(tmp_path, f"teacher.llm={tmp_path / 'no-llm'}")
    pipeline.folder.mkdir(parents=True)
    with lock(pipeline.folder / ".data.lock"), pytest.raises(Exception, match="no-llm") as found:
        list(make_side_by_side([Task(pipeline, "data"), Task(pipeline, "llm")], 2))
    assert "in llm" in "".join(found.value.__notes__), "where it happened is told as well"
    assert not multiprocessing.active_children()


def test_who_stops_listening_ends_the_rest(tmp_path: Path) -> None:
    pipeline = of_chain(tmp_path)
    pipeline.folder.mkdir(parents=True)
    with lock(pipeline.folder / ".popularity.lock"):
        data, held = Task(pipeline, "data"), Task(pipeline, "baseline", ("popularity",))
        made = make_side_by_side([data, held], 2)
        assert next(made) is data
        made.close()
    assert not multiprocessing.active_children()


def test_no_process_outlives_who_asked_for_it(tmp_path: Path) -> None:
    """The data is held, so that who makes it waits for ever: nor does the fork server end, while that has a child."""
    pipeline = of_chain(tmp_path)
    pipeline.folder.mkdir(parents=True)
    asks = f"""
import signal
from pathlib import Path
from recdistill.parallel import Pipeline, Recipe, Task, _begin
recipe = Recipe.model_validate_json({pipeline.recipe.model_dump_json()!r})
print(_begin(Task(Pipeline(recipe, Path({str(pipeline.runs)!r})), "data"))[1].pid, flush=True)
signal.pause()
"""
    pipe = subprocess.PIPE
    with lock(pipeline.folder / ".data.lock"):
        with subprocess.Popen([sys.executable, "-c", asks], stdout=pipe, stderr=pipe, text=True) as asking:
            assert asking.stdout is not None and asking.stderr is not None
            begun = int(asking.stdout.readline())
            assert any("waiting for another process" in line for line in iter(asking.stderr.readline, ""))
            asking.kill()
        until = time.monotonic() + 60
        while _lives(begun) and time.monotonic() < until:
            time.sleep(0.1)
        assert not _lives(begun)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_process_that_is_killed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = parallel._begin

    def begin_and_kill(task: Task) -> Any:
        told, process = begin(task)
        process.kill()
        return told, process

    monkeypatch.setattr(parallel, "_begin", begin_and_kill)
    with pytest.raises(Ended, match=r"data, in a process of its own: killed; .* \(SIGKILL\); fewer --jobs") as found:
        list(make_side_by_side([Task(of_chain(tmp_path), "data")], 2))
    told = explain(found.value, "go on")
    assert told is not None and told.startswith("data, in") and told.endswith("fewer --jobs take less memory; then go on")


def test_a_long_error_is_told(tmp_path: Path) -> None:
    """Longer than what a pipe holds: it is read while it is written."""
    name = "n" * 200_000
    with pytest.raises(Exception, match=name):
        list(make_side_by_side([Task(of_chain(tmp_path, f"teacher.llm={name}"), "llm")], 1))


class Odd(Exception):
    """It cannot be made again from its arguments."""

    def __init__(self, *, reason: str) -> None:
        super().__init__(reason)


class OddValue(Odd, ValueError):
    """Of the user's input."""


def test_what_a_process_says_of_an_error() -> None:
    def told(error: BaseException, cause: BaseException | None = None) -> BaseException:
        try:
            raise error from cause
        except BaseException as raised:
            return pickle.loads(pickle.dumps(_sendable(raised)))  # as another process reads it: without its cause

    odd = told(Odd(reason="a reason"))
    assert type(odd) is RuntimeError and str(odd) == "Odd: a reason" and "raise error" in "".join(odd.__notes__)
    lacking = told(ValueError("a summary"), MemoryError("cannot allocate 3 bytes"))
    assert type(lacking) is MemoryError and str(lacking) == "cannot allocate 3 bytes: fewer --jobs take less"
    assert type(told(ValueError("x"))) is ValueError
    full = told(RuntimeError("a summary"), OSError(errno.ENOSPC, "a writer failed"))
    assert explain(full, "go on") == "the disk is full ([Errno 28] a writer failed); free some space, then go on"
    assert type(told(OddValue(reason="a reason"))) is ValueError, "the command's exit code depends on it"


def test_what_comes_after_what_is_not_there_is_refused(tmp_path: Path) -> None:
    pipeline = Pipeline(recipe(), tmp_path)
    with pytest.raises(ValueError, match="come after what is not among them: llm"):
        list(make_side_by_side([Task(pipeline, "text", after=(Task(pipeline, "llm"),))], 1))
    with pytest.raises(ValueError, match="0 jobs make nothing"):
        list(make_side_by_side([], 0))


def test_an_odd_number_of_jobs_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["distill", "--jobs", "0"])
    assert "'0' is no number from 1 on" in capsys.readouterr().err
