"""Alignment of hidden states (Xu et al., 2024: SLMRec, its feature similarity and feature norm).

    L = mean_n [ a (1 - cos(P s_n, t_n)) + b |P s_n - t_n|^2 / E ]

s: the student's state at a position, t: the teacher's (of several members, the first one's), the vectors that meet the item
table in a dot product. P is the identity where both are of one width, else a learned projector that is dropped after training.
Left out: the paper aligns the ends of several blocks of layers, and adds a classification loss to each.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from distill.objectives.base import StateObjective
from distill.objectives.config import HiddenOptions


class HiddenAlignment(StateObjective[HiddenOptions]):
    """Cosine and squared distance to the teacher's state; 0 at equality."""

    def __init__(self, options: HiddenOptions, student_widths: Mapping[str, int], teacher_widths: Mapping[str, int]) -> None:
        super().__init__(options, student_widths, teacher_widths)
        widths = student_widths["hidden"], teacher_widths["hidden"]
        self.projector = nn.Identity() if widths[0] == widths[1] else nn.Linear(*widths, bias=False)

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], keep_BL: Tensor) -> Tensor:
        own_NE, other_NE = self.projector(student["hidden"]), teacher["hidden"]
        far_N = self.options.cosine * (1 - F.cosine_similarity(own_NE, other_NE, dim=-1))
        return (far_N + self.options.squared * (own_NE - other_NE).pow(2).mean(-1)).mean()
