"""Distillation objectives: one file, one class, one entry here. A recipe composes them with weights.

To add one: a file with a subclass of `Objective`, its name below, and a subclass of the contract in
tests/contracts.py. The table holds module paths so that reading a recipe imports no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.objectives.base import Objective

METHODS = {"forward_kl": "distill.objectives.forward_kl:ForwardKL"}


def build_objectives(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Objective]:
    """The objectives of a recipe, by name; unknown options are an error."""
    objectives = {}
    for name, options in sections.items():
        module, _, cls = METHODS[name].partition(":")
        try:
            objectives[name] = getattr(importlib.import_module(module), cls)(**options)
        except TypeError as error:
            raise ValueError(f"distill.objectives.{name}: {error}") from None
    return objectives
