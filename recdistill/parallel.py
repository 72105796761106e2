"""The artefacts of a recipe side by side, one process each: a GPU is mostly idle while one small model is trained on it.

Artefacts are what they would have been one after the other. Each process computes with `num_threads` of the recipe, so that on
a CPU, whose cores one arm fills, nothing is gained.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import cast

from distill.config import EASE_TEXT, VIEW, TargetsSection
from foundation.failure import Explained, address_space_is_spent, causes, first_line, lacks_disk, lacks_memory
from recdistill.pipeline import ENSEMBLE, ITEM_ENCODER, TUNED, Pipeline, prepare_torch, targets_section
from recdistill.recipe import Recipe
from recdistill.supervisor import ended_by


class Ended(Explained):
    """A process that made an artefact ended without a word."""


@dataclass(frozen=True)
class Task:
    """One artefact: a method of a pipeline with its arguments, and the tasks it comes after."""

    pipeline: Pipeline
    method: str
    arguments: tuple[str | int, ...] = ()
    after: tuple[Task, ...] = ()

    def __str__(self) -> str:
        return " ".join(map(str, (self.method, *self.arguments)))


def distill_tasks(pipeline: Pipeline) -> list[Task]:
    """What `recdistill distill` makes, in an order in which every task comes after those it needs."""
    recipe, tasks = pipeline.recipe, list[Task]()

    def task(method: str, *arguments: str | int, after: Sequence[Task] = ()) -> Task:
        tasks.append(Task(pipeline, method, arguments, tuple(dict.fromkeys(after))))
        return tasks[-1]

    data, llm = task("data"), task("llm")
    text = task("text", after=(data, llm))
    baselines = [task("baseline", name, after=[data]) for name in ("popularity", "item-knn")]
    trained: dict[tuple[str, int], Task] = {}
    linear = {name: task("ease", name, after=[text if name == EASE_TEXT else data]) for name in pipeline.linear}
    text_of_student = dict.fromkeys(recipe.seeds, text)
    views = [who for who in recipe.targets.members if who.startswith(VIEW)]
    text_of_view = {view: task("text_of", view, recipe.seeds[0], after=(data, llm)) for view in views}
    for seed in recipe.seeds:
        own = {name: task("arm", name, seed, after=[it]) for name, it in (("control-id", data), ("control-text", text))}
        if recipe.item_encoder:
            read = [own["control-text"]] if recipe.item_encoder.init == "control-text" else [data, llm]
            own[ITEM_ENCODER] = task("item_encoder", seed, after=read)
            text_of_student[seed] = task("text_of", "student", seed, after=[own[ITEM_ENCODER]])
            own[TUNED] = task("arm", TUNED, seed, after=[text_of_student[seed]])
        own |= {view: task("arm", view, seed, after=[text_of_view[view]]) for view in text_of_view}
        own["teacher"] = task("teacher", seed, after=[text_of_student[seed], own.get(recipe.teacher.item_init, data)])
        trained |= {(name, seed): one for name, one in own.items()}

    def teaching(section: TargetsSection, seed: int) -> list[Task]:
        seeds = recipe.seeds if section.seeds == "all" else [seed]
        return [linear.get(who) or trained[who, own] for who in section.members for own in seeds]

    audits = {
        seed: task(
            "audit",
            seed,
            after=[
                *baselines,
                *(trained[name, seed] for name in (*pipeline.controls, "teacher") if name != ENSEMBLE),
                *teaching(recipe.targets, seed),
            ],
        )
        for seed in recipe.seeds
    }
    for arm in ("student", *([ENSEMBLE] if recipe.distill.ensemble_control else [])):
        section, made = targets_section(recipe, arm), dict[int, Task]()
        for seed in recipe.seeds:
            first = recipe.seeds[0] if section.seeds == "all" else seed
            made[first] = made.get(first) or task("targets", arm, first, after=teaching(section, first))
            read = text if arm == ENSEMBLE else text_of_student[seed]
            task("arm", arm, seed, after=[read, made[first], audits[seed]])  # which is said first, even where it is not heeded
    return tasks


def make_side_by_side(tasks: Sequence[Task], jobs: int) -> Iterator[Task]:
    """Make them, at most `jobs` at a time; the first that fails ends all, and is raised.

    Tells of each when it is made, before one that comes after it is begun; it waits for the caller to ask for the next.
    """
    if jobs < 1:
        raise ValueError(f"{jobs} jobs make nothing; give 1 or more")
    waiting, done = list(tasks), set[Task]()
    if lacking := {other for task in tasks for other in task.after}.difference(tasks):
        raise ValueError(f"tasks come after what is not among them: {', '.join(sorted(map(str, lacking)))}")
    running: dict[Connection, tuple[ForkServerProcess, Task]] = {}
    try:
        while waiting or running:
            for task in [task for task in waiting if done.issuperset(task.after)][: jobs - len(running)]:
                waiting.remove(task)
                told, process = _begin(task)
                running[told] = process, task
            for told in cast("list[Connection]", wait(list(running))):  # with an error, or closed: its process ends
                process, task = running[told]
                error = _error(told, process, task)
                if error is not None:
                    raise error
                del running[told]
                done.add(task)
                yield task
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()


def _begin(task: Task) -> tuple[Connection, ForkServerProcess]:
    context = multiprocessing.get_context("forkserver")  # no process inherits what another one began, nor imports torch anew
    context.set_forkserver_preload(["torch", "transformers"])
    told, tell = context.Pipe(duplex=False)
    of, what = task.pipeline, (task.method, task.arguments)
    options = (of.recipe.model_dump_json(), of.runs, of.overwrite, of.tensorboard)
    process = context.Process(target=_work, args=(tell, options, *what))
    process.start()
    tell.close()
    return told, process


def _error(told: Connection, process: ForkServerProcess, task: Task) -> BaseException | None:
    """What went wrong, if anything did."""
    try:
        return told.recv()
    except (EOFError, OSError):  # nothing was told, or not to its end
        process.join()
    code = cast("int", process.exitcode)
    if code == 0:
        return None
    reason = ended_by(code)
    return Ended(
        f"{task}, in a process of its own: "
        + (f"{reason}; fewer --jobs take less memory" if reason else f"ended with code {code}, without a word")
    )


def _work(
    tell: Connection,
    options: tuple[str, Path, bool, Path | None],
    method: str,
    arguments: tuple[str | int, ...],
) -> None:
    threading.Thread(target=_end_with_who_asked, daemon=True).start()
    try:
        recipe, runs, overwrite, tensorboard = options
        pipeline = Pipeline(Recipe.model_validate_json(recipe), runs, overwrite, tensorboard)
        pipeline.told.update(pipeline.recipe.seeds)  # who began this process says what the audits found
        prepare_torch(pipeline.recipe)
        made = getattr(pipeline, method)
        if callable(made):
            made(*arguments)
    except BaseException as error:
        tell.send(_sendable(error))
        sys.exit(1)


def _end_with_who_asked() -> None:
    """Be killed when the process that asked for this one is: the fork server, which the kernel has for its parent, lives on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _sendable(error: BaseException) -> BaseException:
    """The error, or what of it another process can read; where it came from is its note."""
    came_from = traceback.format_exc()
    for cause in causes(error):  # which does not travel with it
        if lacks_memory(cause) or address_space_is_spent():
            error = MemoryError(f"{first_line(str(cause), type(cause).__name__)}: fewer --jobs take less")
            break
        if lacks_disk(cause):
            error = cause
            break
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        kind = ValueError if isinstance(error, ValueError) else RuntimeError  # the user's fault, or another's
        error = kind(f"{type(error).__name__}: {error}")
    error.add_note(came_from)
    return error
