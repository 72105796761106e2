"""Distillation objectives: one file, one class, one entry here. A recipe composes them with weights.

To add one: a file with a subclass of `Objective` (or of `StateObjective`), its name below, its options in `config.py`, and a
subclass of the role's contract in tests/contracts.py. The table holds module paths so that reading a recipe imports no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from distill.objectives.config import OPTIONS, STATES, ObjectiveOptions

if TYPE_CHECKING:
    from distill.objectives.base import Objective, StateObjective

METHODS = {
    "forward_kl": "distill.objectives.forward_kl:ForwardKL",
    "rrd": "distill.objectives.rrd:RelaxedRanking",
    "dllm2rec": "distill.objectives.dllm2rec:ImportanceAwareRanking",
    "rce_kd": "distill.objectives.rce_kd:RejuvenatedCrossEntropy",
    "hidden": "distill.objectives.hidden:HiddenAlignment",
    "minilm": "distill.objectives.minilm:SelfAttentionRelations",
}


def build_objectives(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Objective]:
    """The objectives of a recipe that compare scores, by name; those of weight 0 are left out."""
    return {name: cls(section) for name, cls, section in _weighed(sections) if name not in STATES}


def build_state_objectives(
    sections: Mapping[str, Mapping[str, Any]], student_width: int, teacher_widths: Mapping[str, int]
) -> dict[str, StateObjective]:
    """Those that compare states; all of a student's are `student_width` wide."""
    widths = dict.fromkeys(teacher_widths, student_width)
    return {name: cls(section, widths, teacher_widths) for name, cls, section in _weighed(sections) if name in STATES}


def _weighed(sections: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, type, ObjectiveOptions]]:
    for name, options in sections.items():
        module, _, cls = METHODS[name].partition(":")
        section = OPTIONS[name].model_validate(options)
        if section.weight:
            yield name, getattr(importlib.import_module(module), cls), section
