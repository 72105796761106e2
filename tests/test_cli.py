"""The command line: its options are frozen here, it starts without torch, and its exit codes mean what they say."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

import foundation.artifact as store
from foundation.artifact import Draft, make
from foundation.failure import explain
from recdistill import cli
from recdistill.cli import build_parser, main
from tests.constructed import write_chain_dataset

COMMON = ["--data", "--help", "--overwrite", "--recipe", "--runs", "--set", "--teacher"]
COMMANDS = {
    "data": COMMON,
    "teacher": sorted([*COMMON, "--tensorboard"]),
    "distill": sorted([*COMMON, "--tensorboard", "--jobs"]),
    "quantize": COMMON,
    "export onnx": COMMON,
    "export tensorrt": COMMON,
    "export append": sorted([*COMMON, "--engines", "--graph", "items", "out"]),
    "export triton": COMMON,
    "export openvino": COMMON,
    "export aotinductor": sorted([*COMMON, "out"]),
    "export text-encoder": COMMON,
    "export verify": COMMON,
    "export describe": ["--help", "artifact"],
    "export checkpoint": sorted([*COMMON, "--dataset", "out", "student"]),
    "bench": sorted([*COMMON, "--quick"]),
    "bench check-latency": sorted([*COMMON, "--dataset", "--head", "--history", "--junit", "--student", "base"]),
    "bench compare": ["--help", "first", "second"],
    "bench prove-gate": sorted([*COMMON, "--ledger", "--max-minutes"]),
    "inspect": ["--help", "artifact"],
}


def test_no_new_options() -> None:
    """Knobs belong into the recipe; a new option needs a reason and a change here."""
    assert dict(commands(build_parser())) == COMMANDS


def commands(parser: argparse.ArgumentParser, prefix: str = "") -> list[tuple[str, list[str]]]:
    subs = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    options = sorted(a.option_strings[-1] if a.option_strings else a.dest for a in parser._actions if a not in subs)
    own = [] if subs and subs[0].required else [(prefix, options)]
    return own + [entry for s in subs for name, sub in s.choices.items() for entry in commands(sub, f"{prefix} {name}".strip())]


@pytest.mark.parametrize("code", ["from recdistill.cli import build_parser; build_parser()", "import recdistill.recipe"])
def test_light_start(code: str) -> None:
    heavy = ["torch", "transformers", "onnxruntime", "tensorrt_rtx", "polars"]
    check = f"{code}; import sys; loaded = [m for m in {heavy} if m in sys.modules]; sys.exit(str(loaded) if loaded else 0)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_speed_worker_does_not_import_torch_for_a_graph() -> None:
    """Peak memory of an ONNX Runtime row must be its own."""
    modules = "benchmark.worker, recommender.runtimes.onnxruntime"
    check = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'polars' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_usage_errors_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--recipe", str(tmp_path / "none.toml")]) == 2
    assert "no such recipe" in capsys.readouterr().err
    assert main(["data", "--recipe", "recipes/smoke.toml", "--data", str(tmp_path), "--runs", str(tmp_path / "runs")]) == 2
    assert "has no interactions.parquet" in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        main(["no-such-stage"])
    assert error.value.code == 2


def test_a_recipes_time_is_of_its_own_data_and_llm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, data = tmp_path / "mine.toml", tmp_path / "mine"
    recipe.write_text('base = "recipes/smoke.toml"\nabout = "an hour"\n'.replace("recipes", str(Path("recipes").resolve())))
    write_chain_dataset(data)
    words = ["data", "--recipe", str(recipe), "--runs", str(tmp_path / "runs")]
    printed = []
    for more in ([], ["--data", str(data)], ["--data", str(data), "--teacher", "smollm2-135m-instruct"]):
        main([*words, *more])
        printed.append("an hour" in capsys.readouterr().err)
    assert printed == [True, False, False]


def test_make_hands_set_on_as_it_is() -> None:
    entries = ["targets.members={teacher=1.0,ease=2.0}", "seeds=[0,1]", 'text.prompt="{title}"']
    done = subprocess.run(["make", "-n", "distill", f"SET={' '.join(entries)}"], capture_output=True, text=True, check=True)
    command = next(line for line in done.stdout.splitlines() if " distill " in line)
    words = shlex.split(command)
    assert [after for word, after in pairwise(words) if word == "--set"] == entries


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write(draft: Draft) -> None:
        (draft.path / "f.txt").write_text("x")

    source = make(tmp_path / "a", "source", recipe={}, inputs={}, build=write)
    middle = make(tmp_path / "b", "middle", recipe={}, inputs={"first": source}, build=write, seed=3)
    artifact = make(tmp_path / "c", "thing", recipe={}, inputs={"data": source, "mid": middle}, build=write)
    assert main(["inspect", str(artifact.path)]) == 0
    *tree, result = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in tree[1:]] == ["├─ data", "└─ mid", "   └─ first"]
    twice = make(tmp_path / "d", "thing", recipe={}, inputs={"x": artifact, "y": artifact}, build=write)
    assert main(["inspect", str(twice.path)]) == 0
    tree_twice = capsys.readouterr().out.splitlines()
    assert len(tree_twice) == 7
    assert tree_twice[5].endswith("(see above)")
    assert f"middle {middle.digest[:12]}, seed 3" in tree[2]
    assert json.loads(result)["digest"] == artifact.digest
    (artifact.path / "f.txt").write_text("y")
    store._verified.clear()
    assert main(["inspect", str(artifact.path)]) == 2
    assert "sha256" in capsys.readouterr().err


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), 1, r"out of memory .*lower a batch_size"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), 1, "out of memory"),
        (RuntimeError("Unexpected exception Resource temporarily unavailable In compileGraph"), 1, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 1, r"the disk is full .*runs/x"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 1, "Permission denied: 'runs'"),
        (ModuleNotFoundError("No module named 'optimum'"), 1, "a library is missing"),
        (
            _caused(RuntimeError("Failed to export.\nSee above."), MemoryError("Unable to allocate 1 GiB")),
            1,
            "out of memory .*1 GiB",
        ),
        (RuntimeError("Failed to export.\nSee above."), 1, "RuntimeError: Failed to export.$"),
        (KeyboardInterrupt(), 130, "goes on from the last checkpoint"),
        (cli.Terminated(), 143, "goes on from the last checkpoint"),
    ],
)
def test_every_way_to_fail_has_its_line_and_code(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: argparse.Namespace) -> dict:
        raise error

    monkeypatch.setattr(cli, "_data", fail)
    assert main(["data", "--recipe", "recipes/smoke.toml"]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.search(message, lines[0])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_unwinds_and_leaves_nothing_half_written(tmp_path: Path, number: int, code: int) -> None:
    data = write_chain_dataset(tmp_path / "chain", num_users=20_000)
    command = ["data", "--recipe", "recipes/smoke.toml", "--data", str(data), "--runs", str(tmp_path / "runs")]
    process = subprocess.Popen([sys.executable, "-m", "recdistill.cli", *command], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "making" not in (line := process.stderr.readline()):
        assert line
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode in (code, 0)  # 0: it was done before the signal came
    assert (tmp_path / "runs" / "chain" / "data").exists() == (process.returncode == 0)
    assert not list((tmp_path / "runs" / "chain").glob(".*.lock"))


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_chain_dataset(tmp_path / "chain", num_users=20)
    (tmp_path / "file").write_text("")
    assert main(["data", "--recipe", "recipes/smoke.toml", "--data", str(data), "--runs", str(tmp_path / "file")]) == 1
    assert "Not a directory" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel's own ENOSPC, at the moment the first table is written."""
    data = write_chain_dataset(tmp_path / "chain", num_users=20)
    write = pl.DataFrame.write_parquet
    monkeypatch.setattr(pl.DataFrame, "write_parquet", lambda frame, path: write(frame, "/dev/full"))
    command = ["data", "--recipe", "recipes/smoke.toml", "--data", str(data), "--runs", str(tmp_path / "runs")]
    assert main(command) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "chain" / "data").exists()
    monkeypatch.undo()
    assert main(command) == 0


@pytest.mark.parametrize("limit_mib", [900, 1024, 2300])
def test_too_little_memory_is_said(tmp_path: Path, limit_mib: int) -> None:
    """Whatever library meets the limit, and however it ends: one line names memory, and nothing is half-made."""
    data = write_chain_dataset(tmp_path / "chain", num_users=20)
    command = ["distill", "--recipe", "recipes/smoke.toml", "--data", str(data), "--runs", str(tmp_path / "runs")]
    limit = ["prlimit", f"--as={limit_mib << 20}"]
    done = subprocess.run([*limit, sys.executable, "-m", "recdistill.cli", *command], capture_output=True, text=True)
    assert done.returncode in (1, 128 + signal.SIGABRT, 128 + signal.SIGSEGV), done.stderr[-2000:]
    assert "memory" in done.stderr.splitlines()[-1], done.stderr[-2000:]
    assert (f"allows {limit_mib / 1024:.1f} GiB of address space" in done.stderr) == (limit_mib < 2048)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "chain" / "seed-0" / "student").exists()
    for manifest in (tmp_path / "runs").rglob(f"[!.]*/{store.MANIFEST}"):
        if ".partial" not in str(manifest):
            store.load(manifest.parent).verify()


AT_THE_LIMIT = """
import resource, sys
from foundation.failure import explain
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]) << 20, resource.RLIM_INFINITY))
held = []
try:
    while True:
        held.append(bytearray(1 << 19))
except MemoryError:
    held.clear()
for error in (RuntimeError("no source of that function"), OSError(13, "Permission denied")):
    print(explain(error, "go on"))
"""


def test_what_fails_at_the_limit_of_memory_is_said_to_be_probably_that() -> None:
    done = subprocess.run([sys.executable, "-c", AT_THE_LIMIT, "200"], capture_output=True, text=True, check=True)
    unexplained, explained = done.stdout.splitlines()
    assert re.fullmatch(r"probably out of memory: .*\(no source of that function\); raise `ulimit -v`, then go on", unexplained)
    assert explained == "[Errno 13] Permission denied"
    assert explain(RuntimeError("no source of that function"), "go on") == "RuntimeError: no source of that function"


SLEEPING = """
import os, sys, time
from recdistill.supervisor import supervised
def work():
    try:
        print(os.getpid(), flush=True)
        for _ in range(600):  # a signal that comes just before a sleep begins is noticed only when it ends
            time.sleep(0.1)
    except KeyboardInterrupt:
        return 130
sys.exit(supervised(work, "go on"))
"""


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGKILL, 137, "out of memory"),
        (signal.SIGABRT, 134, "aborted by a library"),
        (signal.SIGSEGV, 139, "invalid access to memory"),
        (signal.SIGTERM, 143, ""),
        (signal.SIGINT, 130, ""),
    ],
)
def test_what_ends_the_working_process_is_named(number: int, code: int, said: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    # what a person sends goes to the process they see, what the kernel sends to the one that works
    os.kill(process.pid if number in (signal.SIGTERM, signal.SIGINT) else worker, number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert said in errors if said else not errors


def test_the_working_process_ends_with_the_one_that_watches() -> None:
    process = subprocess.Popen([sys.executable, "-c", SLEEPING], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists() or "State:\tZ" in Path(f"/proc/{worker}/status").read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail(f"process {worker} lives on")
