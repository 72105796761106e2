"""Forward KL to the teacher's softened distribution (Hinton et al., 2015): its K likeliest items and a bucket for the rest.

    L = T^2 * mean_n [ sum_k p_nk (log p_nk - log q_nk) + r_n (log r_n - log s_n) ]

p: teacher at temperature T, q: student at temperature T, r and s: what is left to all other items. With K = I this is the full
KL. With K < I it is a lower bound of it (data-processing inequality) that is still 0 exactly where the student agrees on the
K items and the rest's total. Left out: how the teacher spreads the rest.
"""

from __future__ import annotations

from torch import Tensor

from distill.objectives.base import Objective, TeacherTargets
from distill.objectives.config import ObjectiveOptions

_TINY = 1e-8


class ForwardKL(Objective[ObjectiveOptions]):
    """KL(teacher || student) * T^2; 0 at equality, never negative."""

    def __call__(self, student_logits_NI: Tensor, targets: TeacherTargets) -> Tensor:
        scaled_NI = student_logits_NI / targets.temperature
        log_q_NK = scaled_NI.gather(-1, targets.index_NK) - scaled_NI.logsumexp(-1, keepdim=True)
        p_NK, r_N = targets.probability_NK, targets.tail_N
        kl_N = (p_NK * (p_NK.clamp(min=_TINY).log() - log_q_NK)).sum(-1)
        if targets.index_NK.shape[-1] < student_logits_NI.shape[-1]:
            s_N = (1 - log_q_NK.exp().sum(-1)).clamp(min=_TINY)
            kl_N = kl_N + r_N * (r_N.clamp(min=_TINY).log() - s_N.log())
        return kl_N.mean() * targets.temperature**2
