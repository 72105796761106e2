"""Regularisers: one file, one class, one entry here. A recipe composes them with weights, for all arms alike.

To add one: a file with a subclass of `Regulariser`, its name below, its options in `config.py`, and a subclass of the contract
in tests/contracts.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distill.regularisers.config import OPTIONS
from foundation import console

if TYPE_CHECKING:
    from distill.regularisers.base import Regulariser

METHODS = {
    "history_contrast": "distill.regularisers.history_contrast:HistoryContrast",
    "text_alignment": "distill.regularisers.text_alignment:TextAlignment",
}


def build_regularisers(sections: Mapping[str, Mapping[str, Any]], has_text: bool) -> dict[str, Regulariser]:
    """The regularisers of a recipe, by name, for an arm that has item text or not; those of weight 0 are left out."""
    found = {}
    for name, options in sections.items():
        module, _, cls = METHODS[name].partition(":")
        section = OPTIONS[name].model_validate(options)
        method = getattr(importlib.import_module(module), cls)
        if section.weight and method.needs_text and not has_text:
            console.say(f"without regulariser {name}: this arm has no item text")
        elif section.weight:
            found[name] = method(section)
    return found
