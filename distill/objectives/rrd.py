"""Relaxed ranking distillation (Kang et al., 2020: DE-RRD): the teacher's order among items it finds
interesting, and all of them before items it does not.

    L = - mean_n sum_k [ s_k - log( sum_{j >= k} e^{s_j} + sum_l e^{u_l} ) ]

s_1 … s_K: student scores (log q) of K interesting items, drawn without replacement from the teacher's stored list with weights
e^{-r/T} (r: rank, from 1) and put in the teacher's order; u_1 … u_L: student scores of uninteresting items, drawn evenly from
the rest of the catalogue. That is the likelihood of the order under a Plackett-Luce model whose tail is left unordered. It is
not 0 where the student equals the teacher, because an order says nothing of distances. Drawn anew in every step from torch's
generator, which training seeds. A sum over K items, as in the paper: hence the recipe's default weight of 1/20. Left out: the
paper draws once an epoch, and it has a second part, distillation experts (DE), which read the teacher's hidden states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.objectives.base import Objective, TeacherTargets, draw
from distill.objectives.config import RrdOptions


class RelaxedRanking(Objective[RrdOptions]):
    """Negative log-likelihood of the teacher's relaxed order, a mean over positions."""

    def __call__(self, log_q_NI: Tensor, targets: TeacherTargets) -> Tensor:
        interesting_NK = self._interesting(targets.index_NK)
        score_NK = log_q_NI.gather(-1, interesting_NK)
        after_NK = score_NK.flip(-1).logcumsumexp(-1).flip(-1)  # log of the sum over k, k + 1, … K
        if (rest := log_q_NI.shape[-1] - targets.index_NK.shape[-1]) > 0:
            below_NL = log_q_NI.gather(-1, self._uninteresting(log_q_NI, targets.index_NK, rest))
            after_NK = torch.logaddexp(after_NK, below_NL.logsumexp(-1, keepdim=True))
        return (after_NK - score_NK).sum(-1).mean()

    def _interesting(self, index_NK: Tensor) -> Tensor:
        """Items of the stored list (likeliest first), drawn without replacement, in its order; int64[N, num_interesting]."""
        num_stored = index_NK.shape[-1]
        if num_stored <= self.options.num_interesting:
            return index_NK
        rank_K = torch.arange(1, num_stored + 1, device=index_NK.device)
        log_weight_NK = (-rank_K / self.options.rank_temperature).expand(index_NK.shape)
        return index_NK.gather(-1, draw(log_weight_NK, self.options.num_interesting).sort(-1).values)

    def _uninteresting(self, log_q_NI: Tensor, index_NK: Tensor, rest: int) -> Tensor:
        """Items outside of the stored list, drawn evenly without replacement; int64[N, at most num_uninteresting]."""
        chance_NI = torch.rand(log_q_NI.shape, device=log_q_NI.device).scatter(-1, index_NK, -1.0)
        return chance_NI.topk(min(self.options.num_uninteresting, rest)).indices
