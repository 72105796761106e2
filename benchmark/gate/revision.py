"""A revision of this repository as something that can be served: its files, its environment, its export of a checkpoint."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from benchmark.gate.measure import GateError
from foundation import console
from foundation.artifact import Unavailable, load
from recommender.runtimes.base import GRAPH


class NoGate(RuntimeError):
    """A base from before there was a gate: there is nothing to compare with."""


class UsageError(ValueError):
    """A base that is neither a revision nor an artefact, or a command that cannot be carried out."""


def resolve(revision: str, repository: Path) -> str:
    """The full hash of a git revision."""
    found = _git(repository, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if found is None:
        raise UsageError(
            f"{revision!r} is no git revision of {repository} (in CI: fetch it first, e.g. fetch-depth: 0), and no artefact"
        )
    return found.decode().strip()


def checkout_name(repository: Path) -> str:
    """The commit that is checked out, "-dirty" behind it where files differ from it; "" outside of a git repository."""
    with suppress(UsageError, Unavailable):
        commit = resolve("HEAD", repository)[:12]
        return f"{commit}-dirty" if _git(repository, "status", "--porcelain", "--untracked-files=no") else commit
    return ""


def checked_out(commit: str, repository: Path, folder: Path) -> Path:
    """The files of `commit` in a folder of their own; kept for the next time."""
    out = folder / commit[:12]
    if not out.exists():
        content = _git(repository, "archive", "--format=tar", commit)
        if content is None:
            raise UsageError(f"the files of {commit} cannot be read from {repository}")
        aside = folder / f".{commit[:12]}.partial"
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            archive.extractall(aside, filter="data")
        os.replace(aside, out)
    return out


def python_of(checkout: Path, repository: Path) -> str:
    """The interpreter of the environment `checkout` asks for: this one, where both ask for the same libraries."""
    if _requirements(checkout) == _requirements(repository):
        return sys.executable
    venv = checkout / ".venv"
    if not (venv / ".installed").exists():
        console.say(f"{checkout} asks for other libraries; making its environment (minutes, once)")
        environment = os.environ | {"PYTHON": sys.executable}
        made = subprocess.run(
            ["bash", "tools/install.sh", ".venv"], cwd=checkout, env=environment, capture_output=True, text=True
        )
        if made.returncode:
            shutil.rmtree(venv, ignore_errors=True)
            raise Unavailable(f"the environment of {checkout} cannot be made: {_last_line(made.stderr)}")
        (venv / ".installed").touch()
    return str(venv / "bin" / "python")


def require_gate(checkout: Path) -> None:
    """Raise `NoGate` for a revision that cannot export a checkpoint."""
    if not (checkout / "benchmark" / "gate" / "revision.py").is_file():
        raise NoGate(f"{checkout.name} is from before the gate")


def exported(name: str, checkout: Path, python: str, student: Path, data: Path, out: Path, options: Iterable[str] = ()) -> Path:
    """The graph of `student` as revision `name` exports it: always anew, since the code is no part of an artefact's key.

    `options` are KEY=VALUE of the recipe.
    """
    shutil.rmtree(out, ignore_errors=True)
    command = [python, "-P", "-m", "recdistill.cli", "export", "checkpoint", str(student), str(out), "--dataset", str(data)]
    for option in ("export.parity_histories=100", *options):
        command += ["--set", option]
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise GateError(name, f"cannot export the checkpoint: {_last_line(done.stderr)}")
    return load(out).file(GRAPH)


def _last_line(said: str) -> str:
    return (said.strip().splitlines() or ["it said nothing"])[-1]


def _requirements(checkout: Path) -> list[str]:
    """The libraries, each with its version, that a checkout's stages are built on."""
    return sorted(tomllib.loads((checkout / "pyproject.toml").read_text())["project"]["dependencies"])


def _git(repository: Path, *command: str) -> bytes | None:
    """What git says, or None where it fails."""
    try:
        done = subprocess.run(["git", "-C", str(repository), *command], capture_output=True)
    except FileNotFoundError:
        raise Unavailable("git is needed to compare revisions, and is not installed") from None
    return done.stdout if done.returncode == 0 else None
