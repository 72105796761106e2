"""Contrast of augmented histories (Xie et al., 2022: CL4SRec).

    L = mean over 2B views of -log( e^{cos(s, s')/tau} / sum over the other views v of e^{cos(s, v)/tau} )

s and s' are the states after the last item of two views of one history; each view is one of crop (a run of items), mask (some
vectors zero) or reorder (a run in another order), drawn anew. The other histories of the batch are negatives. Changed: cosine
over tau where the paper has the dot product, so that the loss does not grow with the states.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.regularisers.base import Regulariser, Step
from distill.regularisers.config import HistoryContrastOptions

OPERATIONS = ("crop", "mask", "reorder")


class HistoryContrast(Regulariser[HistoryContrastOptions]):
    """InfoNCE between two views of each history; 0 where the batch holds a single one."""

    def __call__(self, step: Step) -> Tensor:
        if len(step.history_BL) < 2:
            return step.table_ID.sum() * 0
        views = [self.view(step.history_BL) for _ in range(2)]
        states_VD = torch.cat([self._state(step, *view) for view in views])
        unit_VD = F.normalize(states_VD, dim=-1)
        similar_VV = unit_VD @ unit_VD.T / self.options.temperature
        similar_VV = similar_VV.masked_fill(torch.eye(len(similar_VV), dtype=torch.bool, device=similar_VV.device), -torch.inf)
        other_V = torch.arange(len(similar_VV), device=similar_VV.device).roll(len(step.history_BL))
        return F.cross_entropy(similar_VV, other_V)

    def view(self, history_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Another version of each history, int64[B, L], and what of it keeps its vector, bool[B, L]."""
        rows, kept = [], []
        for history_L in history_BL.cpu():
            items = history_L[history_L != 0]
            seen = torch.ones_like(items, dtype=torch.bool)
            operation = OPERATIONS[int(torch.randint(len(OPERATIONS), ()))]
            if operation == "crop":
                run = self._run(len(items), self.options.crop)
                items, seen = items[run], seen[run]
            elif operation == "mask":
                seen[torch.randperm(len(items))[: int(self.options.mask * len(items))]] = False
            else:
                run = self._run(len(items), self.options.reorder)
                items = items.clone()
                items[run] = items[run][torch.randperm(len(items[run]))]
            padding = history_BL.shape[1] - len(items)
            rows.append(F.pad(items, (padding, 0)))
            kept.append(F.pad(seen, (padding, 0)))
        return torch.stack(rows).to(history_BL.device), torch.stack(kept).to(history_BL.device)

    @staticmethod
    def _run(length: int, share: float) -> slice:
        """Where a run of that share of `length` items lies; at least one."""
        size = max(int(share * length), min(length, 1))
        start = int(torch.randint(length - size + 1, ()))
        return slice(start, start + size)

    @staticmethod
    def _state(step: Step, history_BL: Tensor, kept_BL: Tensor) -> Tensor:
        item_BLD = F.embedding(history_BL, step.table_ID) * kept_BL[:, :, None]
        return step.student.encode(item_BLD, history_BL != 0)[:, -1]
