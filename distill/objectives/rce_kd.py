"""Rejuvenated cross-entropy (Zhu and Zhang, 2025: RCE-KD): the teacher's first items, split by where the student ranks them.

    L = T^2 mean_n [ (1 - gamma) KL(p | Qs) + gamma KL(p | A) ],   gamma = e^{-beta |Qt and Qs| / |Qt|}

Qt: the teacher's first K items; Qs: the student's first K; A = (Qt without Qs) and items drawn from the student's first
`num_candidates`, the item at rank j with weight e^{(z_j + 1)/10}, where z_j (at most 50) is how many items of Qt the student
ranks at j or lower. KL(p | S) is the divergence of teacher and student, each a softmax over S alone, at the targets'
temperature T. Cross-entropy over a subset bounds its NDCG only if the subset holds whatever the student ranks above its members
(Theorem 4.4): Qs does, which serves those of Qt in it, and the draw approximates it for the rest.

Divergence in place of cross-entropy: the difference has no gradient. T^2, as of `forward_kl`, is added. Drawn anew in every
step from torch's generator (the paper draws once an epoch). Nothing of it is left out. Of items outside its stored list the
teacher is known by their total alone, so they share it evenly.
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

    def __call__(self, log_q_NI: Tensor, targets: TeacherTargets) -> Tensor:
        student_NI, num_items = log_q_NI / targets.temperature, log_q_NI.shape[-1]
        num_top = min(self.options.num_top, targets.index_NK.shape[-1])
        ranked_NC = student_NI.detach().topk(min(max(self.options.num_candidates, num_top), num_items), dim=-1).indices
        # All that counts stands in these columns: the student's first items, then those of Qt that are not among them.
        top_NK, stored_NC = targets.index_NK[:, :num_top], self._stored(targets.index_NK, ranked_NC)
        in_teacher_NC, in_student_C = (stored_NC >= 0) & (stored_NC < num_top), self._columns(ranked_NC) < num_top
        only_teacher_NK = self._stored(ranked_NC, top_NK) < 0
        other_NC = (in_teacher_NC & ~in_student_C).scatter(-1, self._drawn(in_teacher_NC), True)
        parts = (
            torch.cat([in_student_C.expand_as(other_NC), torch.zeros_like(only_teacher_NK)], dim=-1),
            torch.cat([other_NC, only_teacher_NK], dim=-1),
        )
        logits_NX = student_NI.gather(-1, torch.cat([ranked_NC, top_NK], dim=-1))
        log_p_NX = self._log_teacher(
            torch.cat([stored_NC, self._columns(top_NK).expand_as(top_NK)], dim=-1), targets, num_items
        )
        gamma_N = (-self.options.overlap_weight * (in_teacher_NC & in_student_C).sum(-1) / num_top).exp()
        first_N, second_N = (_divergence(log_p_NX.to(logits_NX.dtype), logits_NX, part_NX) for part_NX in parts)
        return ((1 - gamma_N) * first_N + gamma_N * second_N).mean() * targets.temperature**2

    @staticmethod
    def _columns(x_NC: Tensor) -> Tensor:
        return torch.arange(x_NC.shape[-1], device=x_NC.device)

    @staticmethod
    def _stored(index_NK: Tensor, asked_NC: Tensor) -> Tensor:
        """The column of `index_NK` that holds each of the asked items, or -1; int64[N, C]."""
        sorted_NK, column_NK = index_NK.sort(dim=-1)
        place_NC = torch.searchsorted(sorted_NK, asked_NC.contiguous()).clamp(max=index_NK.shape[-1] - 1)
        return torch.where(sorted_NK.gather(-1, place_NC) == asked_NC, column_NK.gather(-1, place_NC), -1)

    def _drawn(self, from_teacher_NC: Tensor) -> Tensor:
        """Columns of the student's list, drawn without replacement; int64[N, at most num_drawn]."""
        if self.options.num_drawn >= from_teacher_NC.shape[-1]:
            return self._columns(from_teacher_NC).expand_as(from_teacher_NC)
        below_NC = from_teacher_NC.float().flip(-1).cumsum(-1).flip(-1).clamp(max=_MAX_BELOW)
        return draw((below_NC + 1) / _DRAW_TEMPERATURE, self.options.num_drawn)

    @staticmethod
    def _log_teacher(stored_NX: Tensor, targets: TeacherTargets, num_items: int) -> Tensor:
        """Log-probabilities of items by their column in the stored list, -1: not in it."""
        rest = num_items - targets.index_NK.shape[-1]
        share_N1 = (targets.tail_N / max(rest, 1)).clamp(min=_TINY)[:, None]
        known_NX = targets.probability_NK.clamp(min=_TINY).gather(-1, stored_NX.clamp(min=0))
        return torch.where(stored_NX >= 0, known_NX, share_N1).log()


def _divergence(log_p_NX: Tensor, logits_NX: Tensor, part_NX: Tensor) -> Tensor:
    """KL of two softmaxes over the columns of `part_NX`, float[N]; 0 where there are none."""
    low = torch.finfo(logits_NX.dtype).min
    log_p_NX = log_p_NX.masked_fill(~part_NX, low).log_softmax(-1)
    log_q_NX = logits_NX.masked_fill(~part_NX, low).log_softmax(-1)
    return (log_p_NX.exp() * (log_p_NX - log_q_NX)).masked_fill(~part_NX, 0).sum(-1)
