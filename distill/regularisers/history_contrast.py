"""Contrast of augmented histories (Xie et al., 2022: CL4SRec).

    L = mean over 2B views of -log( e^{cos(s, s')/tau} / sum over the other views v of e^{cos(s, v)/tau} )

s and s' are the states after the last item of two views of one history; each view is one of crop (a run of items), mask (some
vectors zero) or reorder (a run in another order), drawn anew; shares are rounded down, so that mask and
reorder leave histories of three items or fewer as they are. The other histories of the batch are negatives, but those of the
same user and those of the same items, which are taken out. Changed: cosine over tau where the paper has the dot product,
so that the loss does not grow with the states. Left out: the paper trains by this before and beside the recommendation; here
beside it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.regularisers.base import Regulariser, Step
from distill.regularisers.config import HistoryContrastOptions

CROP, MASK, REORDER = OPERATIONS = range(3)


class HistoryContrast(Regulariser[HistoryContrastOptions]):
    """InfoNCE between two views of each history; 0 where the batch holds a single one."""

    def __call__(self, step: Step) -> Tensor:
        if len(step.history_BL) < 2:
            return step.table_ID.sum() * 0
        drawn = torch.randint(len(OPERATIONS), (2, len(step.history_BL), 1), device=step.history_BL.device)
        views = [self.view(step.history_BL, operation_B1) for operation_B1 in drawn]
        states_VD = torch.cat([self._state(step, *view) for view in views])
        unit_VD = F.normalize(states_VD, dim=-1)
        similar_VV = unit_VD @ unit_VD.T / self.options.temperature
        other_V = torch.arange(len(similar_VV), device=similar_VV.device).roll(len(step.history_BL))
        alike_BB = step.user_B[:, None] == step.user_B[None]
        alike_BB = alike_BB | (step.history_BL[:, None] == step.history_BL[None]).all(-1)
        no_negative_VV = alike_BB.repeat(2, 2).scatter(1, other_V[:, None], False)
        return F.cross_entropy(similar_VV.masked_fill(no_negative_VV, -torch.inf), other_V)

    def view(self, history_BL: Tensor, operation_B1: Tensor) -> tuple[Tensor, Tensor]:
        """Another version of each history, int64[B, L], and what of it keeps its vector, bool[B, L]."""
        known_BL, length = history_BL != 0, history_BL.shape[1]
        place_BL = torch.arange(length, device=history_BL.device) - (~known_BL).sum(1, keepdim=True)  # below 0: padding
        chance_BL = torch.rand(history_BL.shape, device=history_BL.device)
        crop_B1, mask_B1, reorder_B1 = (operation_B1 == operation for operation in (CROP, MASK, REORDER))
        cropped_BL, _, _ = self._run(known_BL, place_BL, self.options.crop)
        kept_BL = known_BL & (cropped_BL | ~crop_B1)
        key_BL = torch.where(crop_B1 & cropped_BL, place_BL + length, place_BL.float())  # items come in the order of their keys
        moved_BL, start_B1, size_B1 = self._run(known_BL, place_BL, self.options.reorder)
        key_BL = torch.where(reorder_B1 & moved_BL, start_B1 + size_B1 * chance_BL, key_BL)
        rank_BL = chance_BL.masked_fill(~known_BL, 2.0).argsort(dim=1).argsort(dim=1)
        hidden_BL = rank_BL < (self.options.mask * known_BL.sum(1, keepdim=True)).long()
        seen_BL = kept_BL & ~(mask_B1 & hidden_BL)
        order_BL = key_BL.argsort(dim=1, stable=True)
        return (history_BL * kept_BL).gather(1, order_BL), seen_BL.gather(1, order_BL)

    @staticmethod
    def _run(known_BL: Tensor, place_BL: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
        """A run of that share of each history, at least one item: bool[B, L], its start and its size, int64[B, 1]."""
        length_B1 = known_BL.sum(1, keepdim=True)
        size_B1 = torch.maximum((share * length_B1).long(), length_B1.clamp(max=1))
        start_B1 = (torch.rand_like(length_B1, dtype=torch.float32) * (length_B1 - size_B1 + 1)).long()
        return (place_BL >= start_B1) & (place_BL < start_B1 + size_B1), start_B1, size_B1

    @staticmethod
    def _state(step: Step, history_BL: Tensor, kept_BL: Tensor) -> Tensor:
        item_BLD = F.embedding(history_BL, step.table_ID) * kept_BL[:, :, None]
        return step.student.encode(item_BLD, history_BL != 0)[:, -1]
