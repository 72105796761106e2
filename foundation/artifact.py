"""Artefact directories: what every stage reads and writes.

An artefact is a directory of data files (safetensors, ONNX, Parquet, JSON; never a pickle) and one `manifest.json`
that names its kind, the recipe and seed that made it, the sha256 of every file and the digest of every input artefact.

The life of one: files are written into a hidden sibling (`.name.partial`), fsynced, the manifest is written last, and the
directory is renamed to its final name. A final name therefore always holds a whole artefact. The hidden sibling survives
an interruption together with the key of what was being made, so that a stage can go on from its `checkpoint/` folder;
a sibling with another key is thrown away.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from foundation import console

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
CHECKPOINT = "checkpoint"
_VERSIONED = ("torch", "transformers", "peft", "bitsandbytes", "onnx", "onnxruntime", "polars", "numpy")
_verified: set[tuple[str, str]] = set()


class ArtifactError(ValueError):
    """An artefact that is missing, damaged, of another kind or in the way; the message says what to do."""


class Unavailable(RuntimeError):
    """Something this machine cannot make or run (no library, no device, no kernel); the message names the way out."""


@dataclass(frozen=True)
class Artifact:
    """A whole artefact on disk."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return self.manifest["kind"]

    @property
    def recipe(self) -> dict[str, Any]:
        return self.manifest["recipe"]

    @property
    def metrics(self) -> dict[str, Any]:
        return self.manifest["metrics"]

    @property
    def digest(self) -> str:
        """sha256 over what determines the content: kind, schema, recipe, seed, input digests and file digests (no times)."""
        stable = {k: self.manifest[k] for k in ("kind", "schema_version", "recipe", "seed", "inputs", "files")}
        return hashlib.sha256(_canonical(stable)).hexdigest()

    @property
    def num_bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.manifest["files"].values())

    def file(self, name: str) -> Path:
        """Path of one file, its sha256 checked against the manifest (once per process)."""
        if name not in self.manifest["files"]:
            known = ", ".join(sorted(self.manifest["files"]))
            raise ArtifactError(f"{self.path} ({self.kind}) has no file {name!r}; it has: {known}")
        path, expected = self.path / name, self.manifest["files"][name]["sha256"]
        if (str(path), expected) not in _verified:
            if not path.is_file() or path.is_symlink():
                raise ArtifactError(f"{path} is missing or not a plain file; delete {self.path} and make it again")
            if sha256_file(path) != expected:
                raise ArtifactError(f"{path} does not match its manifest (sha256); delete {self.path} and make it again")
            _verified.add((str(path), expected))
        return path

    def folder(self, name: str) -> Path:
        """Path of a sub-folder, every file in it checked."""
        names = [file for file in self.manifest["files"] if file.startswith(f"{name}/")]
        if not names:
            raise ArtifactError(f"{self.path} ({self.kind}) has no folder {name!r}")
        for file in names:
            self.file(file)
        return self.path / name

    def verify(self) -> None:
        """Check every file, and that there is none the manifest does not name."""
        for name in self.manifest["files"]:
            self.file(name)
        extra = set(_relative_files(self.path)) - set(self.manifest["files"]) - {MANIFEST}
        if extra:
            raise ArtifactError(f"{self.path} holds files its manifest does not name: {', '.join(sorted(extra))}")


@dataclass
class Draft:
    """An artefact being written. Put files into `path`, resumable state into `checkpoint`, figures into `metrics`."""

    path: Path
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        """A folder that survives an interruption and is dropped when the artefact is finished."""
        folder = self.path / CHECKPOINT
        folder.mkdir(exist_ok=True)
        return folder


def load(path: Path | str, kind: str | None = None) -> Artifact:
    """Open the artefact at `path`; `kind` is what the caller expects. Files are verified when they are first used."""
    path = Path(path)
    if not (path / MANIFEST).is_file():
        raise ArtifactError(f"{path} is not an artefact (no {MANIFEST}); make it first, or check the path")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path / MANIFEST} is not valid JSON ({error}); delete {path} and make it again") from None
    _check_manifest(path, manifest)
    if kind is not None and manifest["kind"] != kind:
        raise ArtifactError(f"{path} is a {manifest['kind']!r} artefact, a {kind!r} one is needed here")
    return Artifact(path, manifest)


def make(
    out: Path,
    kind: str,
    *,
    recipe: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    build: Callable[[Draft], None],
    seed: int | None = None,
    overwrite: bool = False,
    remake: bool = False,
) -> Artifact:
    """Reuse `out` if this very recipe, seed and inputs made it; otherwise build it, and refuse to replace another one.

    `overwrite` replaces an artefact made differently; `remake` builds in any case (for measurements, which are never reused).
    """
    key = {
        "kind": kind,
        "schema_version": SCHEMA_VERSION,
        "recipe": json.loads(json.dumps(recipe)),
        "seed": seed,
        "inputs": {name: artifact.digest for name, artifact in inputs.items()},
    }
    if out.exists() and not remake:
        difference = _difference(out, key)
        if difference is None:
            console.say(f"reusing {out}")
            return load(out, kind)
        if not overwrite:
            raise ArtifactError(
                f"{out} was made differently ({difference}); pass --overwrite (OVERWRITE=1 with make) to replace it, or "
                "choose another --runs folder"
            )
    console.say(f"making {out}")
    started = time.perf_counter()
    with _writing(out, key) as draft:
        build(draft)
        draft.metrics["build_s"] = round(time.perf_counter() - started, 3)
    console.say(f"made {out} in {draft.metrics['build_s']:.1f} s")
    return load(out, kind)


@contextmanager
def _writing(out: Path, key: Mapping[str, Any]) -> Iterator[Draft]:
    partial = out.parent / f".{out.name}.partial"
    key_file = partial / CHECKPOINT / "key.json"
    if partial.exists() and (not key_file.is_file() or key_file.read_bytes() != _canonical(key)):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    draft = Draft(partial)
    write_atomically(draft.checkpoint / "key.json", _canonical(key))
    yield draft
    shutil.rmtree(draft.checkpoint)
    files = {}
    for name in sorted(_relative_files(partial)):
        _fsync(partial / name)
        files[name] = {"sha256": sha256_file(partial / name), "bytes": (partial / name).stat().st_size}
    manifest = dict(key) | {
        "files": files,
        "metrics": draft.metrics,
        "versions": versions(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_atomically(partial / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False).encode())
    _replace_directory(partial, out)


def _replace_directory(new: Path, out: Path) -> None:
    """Rename `new` to `out`; a former `out` is moved aside first and deleted last, so that one of the two always stands."""
    old = out.parent / f".{out.name}.old"
    if old.exists():
        shutil.rmtree(old)
    if out.exists():
        os.rename(out, old)
    os.rename(new, out)
    _fsync(out.parent)
    if old.exists():
        shutil.rmtree(old)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace one file: written aside, fsynced, renamed."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_bytes(content)
    _fsync(aside)
    os.replace(aside, path)


def sha256_file(path: Path) -> str:
    """Hex sha256 of one file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of the libraries that shape results."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _check_manifest(path: Path, manifest: Any) -> None:
    required = {"kind", "schema_version", "recipe", "seed", "inputs", "files", "metrics"}
    if not isinstance(manifest, dict) or not required <= set(manifest):
        raise ArtifactError(f"{path / MANIFEST} lacks required fields; delete {path} and make it again")
    if manifest["schema_version"] > SCHEMA_VERSION:
        found = manifest["schema_version"]
        raise ArtifactError(f"{path} has artefact schema {found}, this version reads up to {SCHEMA_VERSION}; update RecDistill")
    for name in manifest["files"]:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtifactError(f"{path / MANIFEST} names a file outside the artefact: {name!r}; do not use this artefact")


def _difference(out: Path, key: Mapping[str, Any]) -> str | None:
    """What distinguishes the artefact at `out` from one made by `key`; None if nothing does."""
    try:
        manifest = load(out).manifest
    except ArtifactError as error:
        return str(error)
    for name in ("kind", "schema_version", "seed"):
        if manifest[name] != key[name]:
            return f"{name}: {manifest[name]!r} there, {key[name]!r} now"
    for name in ("recipe", "inputs"):
        old, new = _flatten(manifest[name]), _flatten(key[name])
        for entry in sorted(old.keys() | new.keys()):
            if old.get(entry) != new.get(entry):
                if name == "inputs":
                    return f"its input {entry!r} has changed"
                return f"{entry}: {old.get(entry)!r} there, {new.get(entry)!r} now"
    return None


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, entry in value.items():
        flat |= _flatten(entry, f"{prefix}{name}.") if isinstance(entry, dict) and entry else {prefix + name: entry}
    return flat


def _relative_files(folder: Path) -> Iterator[str]:
    return (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
