"""The arms of a recipe side by side, one process each: a GPU is mostly idle while one small model is trained on it.

Artefacts are what they would have been one after the other. Each process computes with `num_threads` of the recipe, so that on
a CPU, whose cores one arm fills, nothing is gained.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import cast

from distill.config import TargetsSection
from recdistill.pipeline import ENSEMBLE, ITEM_ENCODER, TUNED, Pipeline, prepare_torch, targets_section
from recdistill.recipe import Recipe
from recdistill.supervisor import end_with


@dataclass(frozen=True)
class Task:
    """One artefact: a method of `Pipeline` with its arguments, and the tasks it comes after."""

    method: str
    arguments: tuple[str | int, ...] = ()
    after: tuple[Task, ...] = ()


def distill_tasks(recipe: Recipe) -> list[Task]:
    """What `recdistill distill` makes, in an order in which every task comes after those it needs."""
    data, llm = Task("data"), Task("llm")
    text = Task("text", after=(data, llm))
    tasks = [data, llm, text]
    trained: dict[tuple[str, int], Task] = {}

    def add(name: str, seed: int, *after: Task, method: str = "arm") -> None:
        arguments = (name, seed) if method == "arm" else (seed,)
        trained[name, seed] = Task(method, arguments, after)
        tasks.append(trained[name, seed])

    for seed in recipe.seeds:
        add("control-id", seed, data)
        add("control-text", seed, text)
        read = text
        if recipe.item_encoder:
            add(ITEM_ENCODER, seed, trained["control-text", seed], method="item_encoder")
            read = trained[ITEM_ENCODER, seed]
            add(TUNED, seed, read)
        start = trained.get((recipe.teacher.item_init, seed), read)
        add("teacher", seed, read, start, method="teacher")

    def teaching(section: TargetsSection, seed: int) -> tuple[Task, ...]:
        seeds = recipe.seeds if section.seeds == "all" else [seed]
        return tuple(trained[who, own] for who, weight in section.members.items() if weight for own in seeds)

    for seed in recipe.seeds:
        controls = [trained[name, seed] for name in ("control-id", "control-text", TUNED) if (name, seed) in trained]
        add("audit", seed, trained["teacher", seed], *controls, *teaching(recipe.targets, seed), method="audit")
    for arm in ("student", *([ENSEMBLE] if recipe.distill.ensemble_control else [])):
        section = targets_section(recipe, arm)
        for seed in recipe.seeds:
            targets = Task("targets", (arm, recipe.seeds[0] if section.seeds == "all" else seed), teaching(section, seed))
            tasks += [] if targets in tasks else [targets]
            heeded = [trained["audit", seed]] if arm == "student" and recipe.distill.follow_audit else []
            add(arm, seed, targets, *heeded)
    return tasks


def make_side_by_side(pipeline: Pipeline, tasks: Sequence[Task], jobs: int) -> None:
    """Make them all, at most `jobs` at a time; the first that fails ends the others, and its error is raised here."""
    waiting, done = list(tasks), set[Task]()
    running: dict[int, tuple[SpawnProcess, Connection, Task]] = {}
    options = (pipeline.recipe.model_dump_json(), pipeline.runs, pipeline.overwrite, pipeline.tensorboard)
    spawn = multiprocessing.get_context("spawn")
    try:
        while waiting or running:
            for task in [task for task in waiting if done.issuperset(task.after)][: jobs - len(running)]:
                waiting.remove(task)
                told, tell = spawn.Pipe(duplex=False)
                process = spawn.Process(target=_work, args=(os.getpid(), tell, *options, task))
                process.start()
                tell.close()
                running[process.sentinel] = process, told, task
            for sentinel in wait(list(running)):
                process, told, task = running.pop(cast("int", sentinel))
                process.join()
                if process.exitcode:
                    raise _error(process, told, task)
                done.add(task)
    finally:
        for process, _, _ in running.values():
            process.terminate()
            process.join()


def _error(process: SpawnProcess, told: Connection, task: Task) -> BaseException:
    try:
        return told.recv()
    except EOFError:
        what = " ".join(map(str, (task.method, *task.arguments)))
        return MemoryError(f"the process that made {what} was ended (code {process.exitcode}), mostly for want of memory")


def _work(
    parent: int, tell: Connection, recipe: str, runs: Path, overwrite: bool, tensorboard: Path | None, task: Task
) -> None:
    end_with(parent)
    try:
        pipeline = Pipeline(Recipe.model_validate_json(recipe), runs, overwrite, tensorboard)
        prepare_torch(pipeline.recipe)
        made = getattr(pipeline, task.method)
        if callable(made):
            made(*task.arguments)
    except BaseException as error:
        error.add_note(traceback.format_exc())
        try:
            tell.send(error)
        except Exception:  # what cannot be pickled is at least told
            tell.send(RuntimeError(traceback.format_exc()))
        sys.exit(1)
