"""Relations within the last layer (Wang et al., 2021: MiniLMv2), which need no common width.

    L = 1/3 sum over X in (queries, keys, values) of mean over heads a and positions i of KL( R^t_ai | R^s_ai ),
    R_ai = softmax over j <= i of x_ai . x_aj / sqrt(d)

x_ai: X at position i, cut into A relation heads of size d, of the teacher and of the student. Positions are those of a training
window, and see the earlier ones only, as in attention. A position that sees itself alone tells nothing, and counts as 0. The
LLM's queries and keys are taken before rotary positions. Where distillation follows the audit, positions that it leaves out
stand in no relation. Changed: MiniLMv2 takes 48 heads of models that are 12 times as wide. Left out: it may read another layer
of the teacher than the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from distill.objectives.base import StateObjective
from distill.objectives.config import MiniLmOptions

PARTS = ("query", "key", "value")


class SelfAttentionRelations(StateObjective[MiniLmOptions]):
    """KL between relations of queries, of keys and of values; 0 at equality."""

    def __init__(self, options: MiniLmOptions, student_widths: Mapping[str, int], teacher_widths: Mapping[str, int]) -> None:
        super().__init__(options, student_widths, teacher_widths)
        for whose, widths in (("student", student_widths), ("teacher", teacher_widths)):
            if wrong := [part for part in PARTS if widths[part] % options.relation_heads]:
                raise ValueError(
                    f"distill.objectives.minilm.relation_heads = {options.relation_heads} does not divide the {whose}'s "
                    f"{wrong[0]} of {widths[wrong[0]]}"
                )

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], keep_BL: Tensor) -> Tensor:
        length = keep_BL.shape[1]
        earlier_LL = torch.ones(length, length, dtype=torch.bool, device=keep_BL.device).tril()
        seen_B1LL = (keep_BL[:, None, :] & keep_BL[:, :, None] & earlier_LL)[:, None]
        total = torch.zeros((), dtype=student[PARTS[0]].dtype, device=keep_BL.device)
        for part in PARTS:
            log_q, log_p = (self._relations(x[part], keep_BL, seen_B1LL) for x in (student, teacher))
            kl_BALL = (log_p.exp() * (log_p - log_q)).masked_fill(~seen_B1LL, 0)
            total = total + kl_BALL.sum() / (self.options.relation_heads * max(int(keep_BL.sum()), 1))
        return total / len(PARTS)

    def _relations(self, x_NW: Tensor, keep_BL: Tensor, seen_B1LL: Tensor) -> Tensor:
        """Log of R, float[B, A, L, L]; rows of what is no position are even and not to be read."""
        x_BLW = x_NW.new_zeros(*keep_BL.shape, x_NW.shape[-1])
        x_BLW[keep_BL] = x_NW
        x_BALd = x_BLW.unflatten(-1, (self.options.relation_heads, -1)).transpose(1, 2)
        scores_BALL = x_BALd @ x_BALd.transpose(-1, -2) / math.sqrt(x_BALd.shape[-1])
        return scores_BALL.masked_fill(~seen_B1LL, torch.finfo(x_NW.dtype).min).log_softmax(-1)
