"""Rejuvenated cross-entropy (Zhu and Zhang, 2025: RCE-KD): the teacher's first items, split by where the student ranks them.

    L = T^2 mean_n [ (1 - gamma) KL(p | Qs) + gamma KL(p | A) ],   gamma = e^{-beta |Qt and Qs| / |Qt|}

Qt: the teacher's first K items; Qs: the student's first K; A = (Qt without Qs) and items drawn from the student's first
`num_candidates`, the item at rank j with weight e^{(z_j + 1)/10}, where z_j (at most 50) is how many items of Qt the student
ranks at j or lower. KL(p | S) is the divergence of teacher and student, each a softmax over S alone, at the targets'
temperature T. Cross-entropy over a subset bounds its NDCG only if the subset holds whatever the student ranks above its members
(Theorem 4.4): Qs does, which serves those of Qt in it, and the draw approximates it for the rest.

Divergence in place of cross-entropy: the difference has no gradient. Drawn anew in every step from torch's generator (the paper
draws once an epoch). Of items outside its stored list the teacher is known by their total alone, so they share it evenly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.objectives.base import Objective, TeacherTargets, draw
from distill.objectives.config import RceKdOptions

_TINY = 1e-12
_DRAW_TEMPERATURE, _MAX_BELOW = 10.0, 50.0  # as in the paper


class RejuvenatedCrossEntropy(Objective[RceKdOptions]):
    """Divergences over what the student ranks high and over what only the teacher does, a mean over positions."""

    def __call__(self, student_logits_NI: Tensor, targets: TeacherTargets) -> Tensor:
        student_NI, num_items = student_logits_NI / targets.temperature, student_logits_NI.shape[-1]
        top_NK = targets.index_NK[:, : self.options.num_top]
        num_top = top_NK.shape[-1]
        ranked_NC = student_NI.detach().topk(min(max(self.options.num_candidates, num_top), num_items), dim=-1).indices
        in_teacher_NI = torch.zeros_like(student_NI, dtype=torch.bool).scatter(-1, top_NK, True)
        in_student_NI = torch.zeros_like(in_teacher_NI).scatter(-1, ranked_NC[:, :num_top], True)
        drawn_NL = self._drawn(in_teacher_NI.gather(-1, ranked_NC), ranked_NC)
        other_NI = (in_teacher_NI & ~in_student_NI).scatter(-1, drawn_NL, True)
        log_p_NI = self._log_teacher(student_NI, targets)
        gamma_N = (-self.options.overlap_weight * (in_teacher_NI & in_student_NI).sum(-1) / num_top).exp()
        first_N, second_N = (_divergence(log_p_NI, student_NI, part_NI) for part_NI in (in_student_NI, other_NI))
        return ((1 - gamma_N) * first_N + gamma_N * second_N).mean() * targets.temperature**2

    def _drawn(self, from_teacher_NC: Tensor, ranked_NC: Tensor) -> Tensor:
        """Items of the student's list, drawn without replacement; int64[N, at most num_drawn]."""
        if self.options.num_drawn >= ranked_NC.shape[-1]:
            return ranked_NC
        below_NC = from_teacher_NC.float().flip(-1).cumsum(-1).flip(-1).clamp(max=_MAX_BELOW)
        return ranked_NC.gather(-1, draw((below_NC + 1) / _DRAW_TEMPERATURE, self.options.num_drawn))

    @staticmethod
    def _log_teacher(student_NI: Tensor, targets: TeacherTargets) -> Tensor:
        rest = student_NI.shape[-1] - targets.index_NK.shape[-1]
        share_N1 = (targets.tail_N / max(rest, 1)).clamp(min=_TINY)[:, None]
        log_p_NI = share_N1.log().to(student_NI.dtype).expand_as(student_NI)
        stored_NK = targets.probability_NK.clamp(min=_TINY).log().to(student_NI.dtype)
        return log_p_NI.scatter(-1, targets.index_NK, stored_NK)


def _divergence(log_p_NI: Tensor, logits_NI: Tensor, part_NI: Tensor) -> Tensor:
    """KL of two softmaxes over the items of `part_NI`, float[N]; 0 where there are none."""
    low = torch.finfo(logits_NI.dtype).min
    log_p_NI = log_p_NI.masked_fill(~part_NI, low).log_softmax(-1)
    log_q_NI = logits_NI.masked_fill(~part_NI, low).log_softmax(-1)
    return (log_p_NI.exp() * (log_p_NI - log_q_NI)).masked_fill(~part_NI, 0).sum(-1)
