"""Faults on purpose: a process killed before its n-th file operation, and manifests forged to match changed files."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foundation import artifact
from foundation.artifact import MANIFEST

OPERATIONS = ((os, "rename"), (os, "replace"), (os, "fsync"), (os, "mkdir"), (os, "unlink"), (shutil, "rmtree"))
_KILLED, _FAILED = 137, 1


def killed_before(number: int, run: Callable[[], Any]) -> bool:
    """Run in a forked process that dies, as by `kill -9`, before its `number`-th file operation; False if it lived on."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            _kill_before(number)
            code = run()
            os._exit(code if isinstance(code, int) else 0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stdout, flush=True)
            os._exit(_FAILED)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, _KILLED), f"the process failed before it was killed: exit code {code}"
    return code == _KILLED


def _kill_before(number: int) -> None:
    count = 0

    def counted(operation: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                os._exit(_KILLED)
            return operation(*args, **kwargs)

        return call

    for module, name in OPERATIONS:
        setattr(module, name, counted(getattr(module, name)))


def forge(folder: Path, change: dict[str, Any] | None = None) -> None:
    """Make the manifest match the files in `folder` again, with `change`d fields: what a hostile author would do."""
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        return
    manifest = json.loads(path.read_text())
    manifest.pop("manifest_sha256")
    manifest["files"] = {
        name: {"sha256": artifact.sha256_file(folder / name), "bytes": (folder / name).stat().st_size}
        for name in manifest["files"]
        if (folder / name).is_file()
    }
    manifest |= change or {}
    manifest["manifest_sha256"] = artifact._sha256(manifest)
    path.write_bytes(artifact.document(manifest))
