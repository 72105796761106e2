"""Masked-item prediction as an auxiliary task (Sun et al., 2019: BERT4Rec's cloze).

    L = mean over masked positions of CE(item there | all others)

A share of each history's items is drawn; their vectors become zero, every position sees every other, and the same weights tell
which items they were. Left out: a learned mask vector, for which serving has no use.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.catalogue_loss import cross_entropy
from distill.regularisers.base import Regulariser, Step
from distill.regularisers.config import MaskedItemOptions


class MaskedItem(Regulariser[MaskedItemOptions]):
    """Cross-entropy of items taken out of the history; 0 where none was drawn."""

    def __call__(self, step: Step) -> Tensor:
        known_BL = step.history_BL != 0
        masked_BL = known_BL & (torch.rand(known_BL.shape, device=known_BL.device) < self.options.share)
        if not masked_BL.any():
            return step.table_ID.sum() * 0
        item_BLD = F.embedding(step.history_BL, step.table_ID) * ~masked_BL[:, :, None]
        hidden_BLD = step.student.encode(item_BLD, known_BL, causal=False)
        return cross_entropy(hidden_BLD[masked_BL], step.table_ID[1:], step.history_BL[masked_BL] - 1)
