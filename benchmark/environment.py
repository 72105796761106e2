"""The machine, the libraries and the code a figure was measured with."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from distill.device import gpu_name
from foundation.artifact import versions

_RUNTIMES = ("openvino", "tensorrt", "tensorrt-rtx", "tritonclient", "mlcommons-loadgen")
_SOURCES = ("foundation", "recommender", "distill", "quantize", "export", "benchmark")
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")


def environment(num_threads: int) -> dict[str, Any]:
    """CPU, GPU, system, library versions, and the sha256 of our own sources."""
    facts = _cpu_facts()
    return {
        "cpu": facts.get("model name") or platform.processor(),
        "cpu_flags": [flag for flag in _FLAGS if flag in facts.get("flags", "").split()],
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "num_threads": num_threads,
        "gpu": gpu_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions() | {name: version for name in _RUNTIMES if (version := _version(name))},
        "sources_sha256": sources_sha256(),
    }


@cache
def sources_sha256() -> str:
    """Of the Python files of all stages, by their paths: two figures with the same one were measured by the same code."""
    root, found = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for folder in _SOURCES for path in (root / folder).rglob("*.py")):
        found.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _cpu_facts() -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo; empty where there is none."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
