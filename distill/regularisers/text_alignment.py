"""Alignment of text and ID vectors by contrast (van den Oord et al., 2018: InfoNCE, in both directions as in CLIP).

    L = (CE(A B^T / tau, diagonal) + CE(B A^T / tau, diagonal)) / 2

A: eta W z_i, B: b_i, both of length 1, for the distinct items that are labels of the batch. Two items whose texts are as good
as the same are no negatives of each other: their scores are taken out. Items whose text vector is zero have no part in it;
those with an empty prompt all have the text "unknown", and so count as the same. Left out: a temperature that is learnt
(CLIP), and projections of either side, since both already live in the space of the item table.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.regularisers.base import Regulariser, Step
from distill.regularisers.config import TextAlignmentOptions


class TextAlignment(Regulariser[TextAlignmentOptions]):
    """InfoNCE between what an item's text and its ID say; 0 where fewer than two items have text."""

    needs_text = True

    def __call__(self, step: Step) -> Tensor:
        table = step.student.items
        index_M = step.label_BL[step.label_BL > 0].unique()
        text_MZ = table.text_IZ[index_M]
        has_text_M = text_MZ.norm(dim=-1) > 0
        index_M, text_MZ = index_M[has_text_M], text_MZ[has_text_M]
        if len(index_M) < 2:
            return step.table_ID.sum() * 0
        by_text_MD, by_id_MD = (F.normalize(x, dim=-1) for x in (table.of_text(text_MZ), table.id_ID[index_M]))
        unit_MZ = F.normalize(text_MZ, dim=-1)
        twins_MM = (unit_MZ @ unit_MZ.T >= self.options.same_text).fill_diagonal_(False)
        score_MM = (by_text_MD @ by_id_MD.T / self.options.temperature).masked_fill(twins_MM, -torch.inf)
        own_M = torch.arange(len(index_M), device=score_MM.device)
        return (F.cross_entropy(score_MM, own_M) + F.cross_entropy(score_MM.T, own_M)) / 2


def alignment(one_ND: Tensor, other_ND: Tensor) -> float:
    """Mean squared distance of paired unit vectors (Wang and Isola, 2020); 0 where they coincide, 4 where they are opposite."""
    one_ND, other_ND = F.normalize(one_ND, dim=-1), F.normalize(other_ND, dim=-1)
    return float((one_ND - other_ND).pow(2).sum(-1).mean())


def uniformity(vectors_ND: Tensor, max_vectors: int = 2000) -> float:
    """log of the mean of e^{-2 d^2} over pairs of unit vectors (Wang and Isola, 2020); lower is more even. Of a sample."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(vectors_ND), generator=generator)[:max_vectors].to(vectors_ND.device)
    return float(torch.pdist(F.normalize(vectors_ND[rows], dim=-1)).pow(2).mul(-2).exp().mean().log())
