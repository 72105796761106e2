"""Arms made side by side are what they are one after the other; what fails ends the rest, and says why."""

from __future__ import annotations

import multiprocessing
import threading
import time
from pathlib import Path

import pytest

from foundation.artifact import load
from foundation.recipe import load_recipe
from recdistill.cli import main
from recdistill.parallel import Task, distill_tasks, make_side_by_side
from recdistill.pipeline import Pipeline
from recdistill.recipe import Recipe
from tests.constructed import write_chain_dataset, write_tiny_llm

KEYS = ["seeds=[0, 1]", "distill.ensemble_control=true", "teacher.optim.epochs=1", "student.optim.epochs=2"]
KEYS += ["item_encoder.optim.epochs=1", "teacher.item_init=control-tuned", "num_threads=1", "text.student_dims=12"]
ONE_SEED = ["seeds=[0]", "distill.ensemble_control=false"]
KEYS += ["targets.members={teacher = 1.0, control-tuned = 1.0}"]


def recipe(*keys: str) -> Recipe:
    return load_recipe(Recipe, Path("recipes/smoke.toml"), [*KEYS, *keys])


@pytest.mark.parametrize("keys", [(), ("targets.seeds=all",), ("distill.ensemble_control=false",)])
def test_every_task_comes_after_those_it_needs(keys: tuple[str, ...]) -> None:
    tasks = distill_tasks(recipe(*keys))
    assert len(set(tasks)) == len(tasks)
    for number, task in enumerate(tasks):
        assert set(task.after) <= set(tasks[:number]), task
    teacher = next(task for task in tasks if (task.method, task.arguments) == ("teacher", (1,)))
    assert ("arm", ("control-tuned", 1)) in {(task.method, task.arguments) for task in teacher.after}
    audit = next(task for task in tasks if (task.method, task.arguments) == ("audit", (0,)))
    assert (teacher in audit.after) == ("targets.seeds=all" in keys), "who teaches is audited, of every seed where all teach"


def test_side_by_side_is_one_after_the_other(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, llm = write_chain_dataset(tmp_path / "chain", num_users=60), write_tiny_llm(tmp_path / "tiny-llm")
    made = {}
    for jobs in ("1", "3"):
        options = ["--recipe", "recipes/smoke.toml", "--data", str(data), "--teacher", str(llm), "--runs", str(tmp_path / jobs)]
        options += [word for key in (*KEYS, *ONE_SEED) for word in ("--set", key)]
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


def test_what_fails_ends_the_rest(tmp_path: Path) -> None:
    data = write_chain_dataset(tmp_path / "chain", num_users=60)
    options = ["--recipe", "recipes/smoke.toml", "--data", str(data), "--teacher", str(tmp_path / "no-llm"), "--jobs", "2"]
    assert main(["distill", *options, "--runs", str(tmp_path / "runs")]) == 2


def test_a_process_that_is_killed_is_named(tmp_path: Path) -> None:
    def kill_one() -> None:
        while not (children := multiprocessing.active_children()):
            time.sleep(0.01)
        children[0].kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(MemoryError, match=r"the process that made .* was ended \(code -9\)"):
        make_side_by_side(Pipeline(recipe(), tmp_path), [Task("llm"), Task("data")], 2)
    killer.join()
    assert not multiprocessing.active_children()


def test_an_odd_number_of_jobs_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["distill", "--jobs", "0"])
    assert "'0' is no number from 1 on" in capsys.readouterr().err
