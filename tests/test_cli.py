"""The command line: its options are frozen here, it starts without torch, and its exit codes mean what they say."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from foundation.artifact import make
from recdistill.cli import build_parser, main

COMMON = ["--data", "--help", "--overwrite", "--recipe", "--runs", "--set", "--teacher"]
COMMANDS = {
    "data": COMMON,
    "teacher": COMMON,
    "distill": COMMON,
    "quantize": COMMON,
    "export onnx": COMMON,
    "export tensorrt": COMMON,
    "bench": COMMON,
    "inspect": ["--help", "artifact"],
}


def test_no_new_options() -> None:
    """Knobs belong into the recipe; a new option needs a reason and a change here."""
    assert dict(commands(build_parser())) == COMMANDS


def commands(parser: argparse.ArgumentParser, prefix: str = "") -> list[tuple[str, list[str]]]:
    subs = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not subs:
        return [(prefix, sorted(a.option_strings[-1] if a.option_strings else a.dest for a in parser._actions))]
    return [entry for name, sub in subs[0].choices.items() for entry in commands(sub, f"{prefix} {name}".strip())]


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


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = make(
        tmp_path / "a", "thing", recipe={}, inputs={}, build=lambda draft: (draft.path / "f").write_text("x") and None
    )
    assert main(["inspect", str(artifact.path)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["digest"] == artifact.digest
    (artifact.path / "f").write_text("y")
    import foundation.artifact as store

    store._verified.clear()
    assert main(["inspect", str(artifact.path)]) == 2
    assert "sha256" in capsys.readouterr().err
