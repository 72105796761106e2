"""Forward KL to the teacher's softened distribution (Hinton et al., 2015): its K likeliest items and a bucket for the rest.

    L = T^2 * mean_n [ sum_k p_nk (log p_nk - log q_nk) + r_n (log r_n - log s_n) ]

p: teacher at temperature T, q: student at temperature T, r and s: what is left to all other items. With K = I this is the full
KL. With K < I it is a lower bound of it (data-processing inequality) that is still 0 exactly where the student agrees on the
K items and the rest's total. Left out: how the teacher spreads the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.objectives.base import Objective, TeacherTargets
from distill.objectives.config import ObjectiveOptions

_TINY = 1e-8
_CLOSE_TO_NOTHING = 1e-3  # where float32 has lost too much of 1 - sum


class ForwardKL(Objective[ObjectiveOptions]):
    """KL(teacher || student) * T^2; 0 at equality, never negative."""

    def __call__(self, log_q_NI: Tensor, targets: TeacherTargets) -> Tensor:
        if targets.temperature != 1:
            log_q_NI = (log_q_NI / targets.temperature).log_softmax(-1)
        log_q_NK = log_q_NI.gather(-1, targets.index_NK)
        p_NK, r_N = targets.probability_NK, targets.tail_N
        kl_N = (p_NK * (p_NK.clamp(min=_TINY).log() - log_q_NK)).sum(-1)
        if targets.index_NK.shape[-1] < log_q_NI.shape[-1]:
            kl_N = kl_N + r_N * (r_N.clamp(min=_TINY).log() - _log_rest(log_q_NI, targets.index_NK, log_q_NK))
        return kl_N.mean() * targets.temperature**2


def _log_rest(log_q_NI: Tensor, index_NK: Tensor, log_q_NK: Tensor) -> Tensor:
    """log s: what the student leaves to all but the K items, float[N]."""
    s_N = 1 - log_q_NK.exp().sum(-1)
    log_s_N, small_N = s_N.clamp(min=_CLOSE_TO_NOTHING).log(), s_N < _CLOSE_TO_NOTHING
    if not small_N.any():
        return log_s_N
    rest_R = log_q_NI[small_N].scatter(-1, index_NK[small_N], -torch.inf).logsumexp(-1)
    return log_s_N.masked_scatter(small_N, rest_R)
