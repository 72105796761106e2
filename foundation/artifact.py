"""Artefact directories: what every stage reads and writes.

An artefact is a directory of data files (safetensors, ONNX, Parquet, JSON; never a pickle) and one `manifest.json`
that names its kind, the recipe and seed that made it, the sha256 of every file, and every artefact it was made from, to the
first. The manifest carries its own sha256.

The life of one: everything is written into a hidden sibling, `.name.partial/`, which holds the key of what is being made, a
`checkpoint/` folder and the `artifact/` folder. Files are fsynced, the manifest is written last, and `artifact/` is renamed to
the final name, which therefore always holds a whole artefact. An interrupted stage finds its sibling again and goes on from
the checkpoint alone; the checkpoint of another key is dropped only when that is asked for. A lock file beside it
(`.name.lock`) keeps two processes from making the same artefact at once; the kernel releases it whatever ends the process.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Concatenate, Literal, ParamSpec, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from foundation import console
from foundation.content import ContentError, check_content, read_json
from foundation.failure import first_line, is_library_error, is_machine_error

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_KEY = "key.json"
_VERSIONED = ("torch", "transformers", "peft", "bitsandbytes", "onnx", "onnxruntime", "polars", "numpy")
_verified: set[tuple[str, str]] = set()
P = ParamSpec("P")
T = TypeVar("T")


class ArtifactError(ValueError):
    """An artefact that is missing, damaged, of another kind or in the way; the message says what to do."""


class Unavailable(RuntimeError):
    """Something this machine cannot make or run (no library, no device, no kernel); the message names the way out."""


Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class _Stable(BaseModel):
    """What determines an artefact's content, and so its digest: no times, no figures."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,100}$")]
    schema_version: Literal[1]
    recipe: dict[str, Any]
    seed: int | None
    inputs: dict[str, Sha256]
    files: dict[str, _File]


class _Manifest(_Stable):
    ancestors: dict[Sha256, _Stable]
    metrics: dict[str, Any]
    versions: dict[str, str]
    created: str
    manifest_sha256: Sha256


@dataclass(frozen=True)
class Artifact:
    """A whole artefact on disk."""

    path: Path
    manifest: Mapping[str, Any]
    content_known: bool = False

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
        return _sha256(_stable(self.manifest))

    @property
    def ancestors(self) -> dict[str, dict[str, Any]]:
        """digest -> kind, recipe, seed, inputs and files of every artefact this one was made from, directly or not."""
        return self.manifest["ancestors"]

    @property
    def num_bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.manifest["files"].values())

    def file(self, name: str) -> Path:
        """Path of one file, its sha256 checked against the manifest and its content by its type (once per process)."""
        if name not in self.manifest["files"]:
            known = ", ".join(sorted(self.manifest["files"]))
            raise ArtifactError(f"{self.path} ({self.kind}) has no file {name!r}; it has: {known}")
        path, expected = self.path / name, self.manifest["files"][name]["sha256"]
        if (str(path), expected) not in _verified:
            if not path.is_file() or any(part.is_symlink() for part in _between(self.path, path)):
                raise ArtifactError(f"{path} is missing or not a plain file; delete {self.path} and make it again")
            if path.stat().st_size != self.manifest["files"][name]["bytes"] or sha256_file(path) != expected:
                raise ArtifactError(f"{path} does not match its manifest (sha256); delete {self.path} and make it again")
            try:
                if not self.content_known:
                    check_content(path)
            except ContentError as error:
                raise ArtifactError(f"{error}; do not use {self.path}") from None
            _verified.add((str(path), expected))
        return path

    def folder(self, name: str) -> Path:
        """Path of a sub-folder, every file in it checked."""
        names = [file for file in self.manifest["files"] if file.startswith(f"{name}/")]
        if not names:
            raise ArtifactError(f"{self.path} ({self.kind}) has no folder {name!r}")
        for file in names:
            self.file(file)
        self._refuse_extra(name)
        return self.path / name

    def verify(self) -> None:
        """Check every file, and that there is none the manifest does not name."""
        for name in self.manifest["files"]:
            self.file(name)
        self._refuse_extra()

    def _refuse_extra(self, folder: str = "") -> None:
        found = {f"{folder}/{name}" if folder else name for name in _relative_files(self.path / folder)}
        if extra := found - set(self.manifest["files"]) - {MANIFEST}:
            raise ArtifactError(f"{self.path} holds files its manifest does not name: {', '.join(sorted(extra))}")


def opens(function: Callable[Concatenate[Artifact, P], T]) -> Callable[Concatenate[Artifact, P], T]:
    """A function that reads an artefact: whatever a library says of content that does not fit becomes an `ArtifactError`.

    Digests and file types have been checked by then; what is left is a tensor, a column or a key that is not as the stage's
    own writer leaves it.
    """

    @functools.wraps(function)
    def reading(artifact: Artifact, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(artifact, *args, **kwargs)
        except (ArtifactError, Unavailable):
            raise
        except BaseException as error:
            if not is_library_error(error) or is_machine_error(error):
                raise
            raise _unreadable(artifact, error) from error

    return reading


def _unreadable(artifact: Artifact, error: BaseException) -> ArtifactError:
    reason = first_line(str(error), "no reason given")
    return ArtifactError(
        f"{artifact.path} cannot be read as {artifact.kind!r} ({type(error).__name__}: {reason}); delete it and make it again"
    )


@dataclass
class Draft:
    """An artefact being written. Put files into `path`, resumable state into `checkpoint`, figures into `metrics`."""

    folder: Path
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The future artefact."""
        return _made(self.folder / "artifact")

    @property
    def checkpoint(self) -> Path:
        """A folder that survives an interruption (`path` does not) and is dropped when the artefact is finished."""
        return _made(self.folder / "checkpoint")

    @property
    def refused(self) -> Path:
        """A folder beside the artefact for what explains why it was not made; it goes when the artefact is finished."""
        return _made(_refused(self.folder))

    def take(self, name: str) -> None:
        """Put the checkpoint's file `name` into the artefact; until that is finished it stays in the checkpoint as well."""
        try:
            os.link(self.checkpoint / name, self.path / name)
        except OSError:  # a file system without hard links
            shutil.copyfile(self.checkpoint / name, self.path / name)


def load(path: Path | str, kind: str | None = None, verified_digest: str = "") -> Artifact:
    """Open the artefact at `path`; `kind` is what the caller expects. Files are verified when they are first used.

    `verified_digest` is what a parent process has found good: files are still compared with their sha256, but not parsed
    again, so that a process that measures its own memory loads no parser.
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        raise ArtifactError(f"{path} is not an artefact (no {MANIFEST}); make it first, or check the path")
    try:
        manifest = read_json(path / MANIFEST)
        _check_manifest(path, manifest)
    except (ContentError, RecursionError) as error:
        raise ArtifactError(f"{error}; delete {path} and make it again") from None
    if kind is not None and manifest["kind"] != kind:
        raise ArtifactError(f"{path} is a {manifest['kind']!r} artefact, a {kind!r} one is needed here")
    artifact = Artifact(path, manifest)
    return replace(artifact, content_known=True) if artifact.digest == verified_digest else artifact


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
    partial, busy = out.parent / f".{out.name}.partial", out.parent / f".{out.name}.lock"
    if not remake and not partial.exists() and not busy.exists() and (found := _reused(out, key)):
        return found  # without a lock, so that a folder that may only be read serves as well
    out.parent.mkdir(parents=True, exist_ok=True)
    with lock(busy):
        _recover(partial, out)
        if not remake and (found := _reused(out, key)):
            if partial.exists():
                shutil.rmtree(partial)
            return found
        _refuse_to_replace(out)
        if not remake and not overwrite and out.exists():
            raise ArtifactError(
                f"{out} was made differently ({_difference(out, key)}); pass --overwrite (OVERWRITE=1 with make) to replace "
                "it, or choose another --runs folder"
            )
        if not (remake or overwrite):
            _refuse_to_drop(partial, key)
        console.say(f"making {out}")
        started = time.perf_counter()
        draft = _begin(partial, key)
        build(draft)
        draft.metrics["build_s"] = round(time.perf_counter() - started, 3)
        _finish(draft, key, inputs)
        _put_in_place(partial, out)
        console.say(f"made {out} in {draft.metrics['build_s']:.1f} s")
        return replace(load(out, kind), content_known=True)


def _refuse_to_replace(out: Path) -> None:
    """What is no artefact, or holds files of someone else, is never deleted."""
    if not out.exists() and not out.is_symlink():
        return
    if out.is_symlink() or not (out / MANIFEST).is_file():
        raise ArtifactError(f"{out} is there and is no artefact; it is not replaced: move it away, or choose another place")
    try:
        found = load(out)
    except ArtifactError:
        return  # a damaged artefact may go
    try:
        found._refuse_extra()
    except ArtifactError as error:
        raise ArtifactError(f"{error}; they would be lost: move them away") from None


def _refuse_to_drop(partial: Path, key: Mapping[str, Any]) -> None:
    """Hours of another recipe's unfinished work are no less worth than a finished artefact."""
    if not (partial / _KEY).is_file() or not any((partial / "checkpoint").glob("*")):
        return
    try:
        other = _key_difference(json.loads((partial / _KEY).read_bytes()), key)
    except (ValueError, KeyError, TypeError, AttributeError):
        return  # a key that cannot be read can be gone on from by nobody
    if other is not None:
        raise ArtifactError(
            f"{partial} holds the checkpoint of an unfinished run made differently ({other}); go on with that recipe, or pass "
            "--overwrite (OVERWRITE=1 with make) to drop it"
        )


def _reused(out: Path, key: Mapping[str, Any]) -> Artifact | None:
    """The artefact at `out` if `key` made it."""
    if not out.exists() or _difference(out, key) is not None:
        return None
    console.say(f"reusing {out}")
    return load(out)


def _begin(partial: Path, key: Mapping[str, Any]) -> Draft:
    """The draft of `key`, going on from what an interrupted run left of the same one."""
    key_file = partial / _KEY
    if partial.exists() and (not key_file.is_file() or key_file.read_bytes() != _canonical(key)):
        shutil.rmtree(partial)
    for name in ("artifact", "old"):  # of `old`, `_recover` has brought back what was needed
        if (partial / name).exists():
            shutil.rmtree(partial / name)
    partial.mkdir(exist_ok=True)
    write_atomically(key_file, _canonical(key))
    return Draft(partial)


def _finish(draft: Draft, key: Mapping[str, Any], inputs: Mapping[str, Artifact]) -> None:
    """Check and fsync every file and folder, and write the manifest last."""
    path, files = draft.path, {}
    for name in sorted(_relative_files(path)):
        check_content(path / name)
        fsync(path / name)
        files[name] = {"sha256": sha256_file(path / name), "bytes": (path / name).stat().st_size}
    manifest = dict(key) | {
        "files": files,
        "ancestors": _ancestors(inputs),
        "metrics": draft.metrics,
        "versions": versions(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    manifest["manifest_sha256"] = _sha256(manifest)
    write_atomically(path / MANIFEST, document(manifest))
    for folder in [path, *(entry for entry in path.rglob("*") if entry.is_dir())]:
        fsync(folder)


def _refused(partial: Path) -> Path:
    return partial.with_name(partial.name.removeprefix(".").removesuffix(".partial") + "-refused")


def _put_in_place(partial: Path, out: Path) -> None:
    """Rename the finished artefact to its name; a former one is moved aside first, and deleted last."""
    shutil.rmtree(_refused(partial), ignore_errors=True)
    if out.exists():
        os.rename(out, partial / "old")
    os.rename(partial / "artifact", out)
    fsync(out.parent)
    shutil.rmtree(partial)


def _recover(partial: Path, out: Path) -> None:
    """Bring back what an interruption between the two renames of `_put_in_place` left without a name."""
    if (partial / "old").exists() and not out.exists():
        os.rename(partial / "old", out)
        fsync(out.parent)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold `path` locked against other processes; wait for one that has it. The file is gone afterwards."""
    while True:
        with path.open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                console.say(f"waiting for another process that holds {path}")
                fcntl.flock(stream, fcntl.LOCK_EX)
            try:
                if os.stat(path).st_ino != os.fstat(stream.fileno()).st_ino:
                    continue  # the process waited for has deleted this file; another may have made the name again
            except FileNotFoundError:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def write_atomically(path: Path, content: bytes) -> None:
    """Replace one file: written aside, fsynced, renamed, the folder fsynced."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_bytes(content)
    replace_durably(aside, path)


def replace_durably(aside: Path, path: Path) -> None:
    """Rename a file that was written aside to its name, so that the name holds the old or the whole new content."""
    fsync(aside)
    os.replace(aside, path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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


def document(manifest: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest's file; no others are accepted (JSON with a key twice, for one, would say two things)."""
    return json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False).encode()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _sha256(value: Any) -> str:
    return hashlib.sha256(_canonical(value)).hexdigest()


def _stable(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {name: manifest[name] for name in _Stable.model_fields}


def _ancestors(inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    found = {}
    for artifact in inputs.values():
        found |= artifact.ancestors | {artifact.digest: _stable(artifact.manifest)}
    return found


def _check_manifest(path: Path, manifest: Any) -> None:
    where, again = path / MANIFEST, f"delete {path} and make it again"
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has artefact schema {version}, this version reads up to {SCHEMA_VERSION}; update RecDistill, or {again}"
        )
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        raise ArtifactError(f"{where}: {'.'.join(map(str, first['loc'])) or 'manifest'}: {first['msg']}; {again}") from None
    for name in manifest["files"]:
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name or name in ("", MANIFEST):
            raise ArtifactError(f"{where} names a file outside the artefact: {name!r}; do not use this artefact")
    own = _sha256({k: v for k, v in manifest.items() if k != "manifest_sha256"})
    if manifest["manifest_sha256"] != own or where.read_bytes() != document(manifest):
        raise ArtifactError(f"{where} does not match its own sha256; {again}")
    for digest, ancestor in manifest["ancestors"].items():
        if digest != _sha256(ancestor):
            raise ArtifactError(f"{where}: the {ancestor['kind']!r} it was made from does not match its digest; {again}")
    known = set(manifest["ancestors"])
    for entry in (manifest, *manifest["ancestors"].values()):
        if unknown := set(entry["inputs"].values()) - known:
            raise ArtifactError(f"{where} does not name what it was made from ({min(unknown)[:12]}); {again}")


def _difference(out: Path, key: Mapping[str, Any]) -> str | None:
    """What distinguishes the artefact at `out` from one made by `key`; None if nothing does."""
    try:
        manifest = load(out).manifest
    except ArtifactError as error:
        return str(error)
    return _key_difference(manifest, key)


def _key_difference(there: Mapping[str, Any], key: Mapping[str, Any]) -> str | None:
    for name in ("kind", "schema_version", "seed"):
        if there[name] != key[name]:
            return f"{name}: {there[name]!r} there, {key[name]!r} now"
    for name in ("recipe", "inputs"):
        old, new = _flatten(there[name]), _flatten(key[name])
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


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _between(folder: Path, path: Path) -> list[Path]:
    """`path` and its parents below `folder`."""
    return [path, *(parent for parent in path.parents if folder in parent.parents)]


def _relative_files(folder: Path) -> Iterator[str]:
    return (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink())
