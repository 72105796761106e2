"""Adversarial perturbation of the item vectors (Miyato et al., 2017: fast gradient method).

    L = CE(E + r),   r = epsilon * m * g / |g|,   g = gradient of CE at E

E: the vectors of a history's items, float[L, D]; |g| is taken over the whole history; m is the mean length of its vectors, so
that epsilon has no unit. g is a constant of the loss. Left out: the virtual variant, which needs no label.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.regularisers.base import Regulariser, Step
from distill.regularisers.config import FgmOptions

_TINY = 1e-12


class AdversarialItems(Regulariser[FgmOptions]):
    """Cross-entropy where the items' vectors are moved the way that hurts most."""

    def __call__(self, step: Step) -> Tensor:
        item_BLD = F.embedding(step.history_BL, step.table_ID)
        known_BL = step.history_BL != 0
        return step.cross_entropy(step.student.encode(item_BLD + self.perturbation(step), known_BL))

    def perturbation(self, step: Step) -> Tensor:
        """r, float[B, L, D]; 0 at padding."""
        known_BL = step.history_BL != 0
        item_BLD = F.embedding(step.history_BL, step.table_ID).detach().requires_grad_()
        loss = step.cross_entropy(step.student.encode(item_BLD, known_BL))
        (gradient_BLD,) = torch.autograd.grad(loss, item_BLD)
        gradient_BLD = gradient_BLD * known_BL[:, :, None]
        length_B11 = item_BLD.detach().norm(dim=-1).sum(1)[:, None, None] / known_BL.sum(1).clamp(min=1)[:, None, None]
        norm_B11 = gradient_BLD.flatten(1).norm(dim=1)[:, None, None].clamp(min=_TINY)
        return self.options.epsilon * length_B11 * gradient_BLD / norm_B11
