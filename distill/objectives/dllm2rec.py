"""Importance-aware ranking distillation (Cui et al., 2024: DLLM2Rec): the teacher's first items, each as much as it is worth.

    L = mean_n [ KL(w_n || q_n) ],   w = gamma_p w^p + gamma_c w^c + gamma_o w^o,   renormalised over the list

w^p ∝ e^{-r/beta}         position: rank r in the teacher's list, from 1
w^c ∝ e^{-d/beta_c}       confidence: d = -log p, how far the teacher itself is from the item (p at the targets' temperature)
w^o = 1                   consistency: items that the student has among its own first `num_consistent` as well, else 0

q is the student's distribution over the catalogue. Position and confidence are normalised over the list, consistency is not,
as in the authors' code: with gammas of .3, .5 and .1 the items both agree on have a share that grows with their number. Their
beta is 1 and their list 10 items long (`rank_temperature`, `num_listed`, `num_consistent`). Changed: the paper has -sum w log
sigma(s), for students trained with one negative; beside a full softmax the logarithm of q takes its place, and the entropy of
w, which has no gradient, is taken off. Its teacher writes titles, and d is the distance from what was written to the item;
ours has probabilities. Left out: the paper's second part, collaborative embedding distillation, which the student has by its
construction (b + eta W z).
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.objectives.base import Objective, TeacherTargets
from distill.objectives.config import Dllm2RecOptions

_TINY = 1e-12


class ImportanceAwareRanking(Objective[Dllm2RecOptions]):
    """KL from the importance of the teacher's first items to the student's distribution, a mean over positions."""

    def __call__(self, log_q_NI: Tensor, targets: TeacherTargets) -> Tensor:
        num_listed = min(self.options.num_listed, targets.index_NK.shape[-1])
        index_NK = targets.index_NK[:, :num_listed]
        weight_NK = self._importance(log_q_NI.detach(), index_NK, targets.probability_NK[:, :num_listed])
        return (weight_NK * (weight_NK.clamp(min=_TINY).log() - log_q_NI.gather(-1, index_NK))).sum(-1).mean()

    def _importance(self, log_q_NI: Tensor, index_NK: Tensor, probability_NK: Tensor) -> Tensor:
        options = self.options
        rank_K = torch.arange(1, index_NK.shape[-1] + 1, device=index_NK.device, dtype=probability_NK.dtype)
        position_NK = (-rank_K / options.rank_temperature).exp().expand_as(probability_NK)
        confidence_NK = probability_NK.clamp(min=_TINY) ** (1 / options.confidence_temperature)
        own_NC = log_q_NI.topk(min(options.num_consistent, log_q_NI.shape[-1]), dim=-1).indices
        consistent_NK = (index_NK[:, :, None] == own_NC[:, None, :]).any(-1).to(probability_NK.dtype)
        weight_NK = options.consistency * consistent_NK
        for gamma, part_NK in ((options.position, position_NK), (options.confidence, confidence_NK)):
            weight_NK = weight_NK + gamma * part_NK / part_NK.sum(-1, keepdim=True).clamp(min=_TINY)
        return weight_NK / weight_NK.sum(-1, keepdim=True).clamp(min=_TINY)
