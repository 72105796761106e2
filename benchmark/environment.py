"""The machine and the libraries a figure was measured with."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from distill.device import gpu_name
from foundation.artifact import versions

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")


def environment(num_threads: int) -> dict[str, Any]:
    """CPU, GPU, system and library versions."""
    facts = _cpu_facts()
    return {
        "cpu": facts.get("model name") or platform.processor(),
        "cpu_flags": [flag for flag in _FLAGS if flag in facts.get("flags", "").split()],
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "num_threads": num_threads,
        "gpu": gpu_name(),
        "system": platform.platform(),
        "versions": versions(),
    }


def _cpu_facts() -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo; empty where there is none."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
