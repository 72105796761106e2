"""Distillation objectives: one file, one class, one entry here. A recipe composes them with weights.

To add one: a file with a subclass of `Objective`, its name below, its options in `config.py`, and a subclass of the contract in
tests/contracts.py. The table holds module paths so that reading a recipe imports no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distill.objectives.config import OPTIONS

if TYPE_CHECKING:
    from distill.objectives.base import Objective

METHODS = {
    "forward_kl": "distill.objectives.forward_kl:ForwardKL",
    "rrd": "distill.objectives.rrd:RelaxedRanking",
    "dllm2rec": "distill.objectives.dllm2rec:ImportanceAwareRanking",
    "rce_kd": "distill.objectives.rce_kd:RejuvenatedCrossEntropy",
}


def build_objectives(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Objective]:
    """The objectives of a recipe, by name; those of weight 0 are left out."""
    objectives = {}
    for name, options in sections.items():
        module, _, cls = METHODS[name].partition(":")
        section = OPTIONS[name].model_validate(options)
        if section.weight:
            objectives[name] = getattr(importlib.import_module(module), cls)(section)
    return objectives
