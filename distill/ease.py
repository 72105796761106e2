"""Stage: EASE, a linear recommender in closed form, as one of those who teach; by interactions alone, or by item texts as well.

    score(history) = sum over its items i of w_i B_i,   B = I - P diag(1 / diag P),   P = (X'X + a Z Z' + l I)^-1

X holds users by items, 1 where a training part has the item; B has the least squared error |X - X B|^2 + l |B|^2 with a zero
diagonal (Steck, 2019: EASE). Z holds items by dimensions of their text vectors, each item's of length 1: with it every
dimension counts as one more user, a times over (Jeunen, Van Balen and Goethals, 2020: collective EASE), so that an item of
few interactions is known by those whose texts are alike: to the pretrained LLM (`ease-text`: the vectors of `[text]`, best
whitened), or in their words (`ease-words`: `distill/words.py`).

It is fitted without regard to order. When it scores, an item with n items after it counts w = e^{-n / recency}, as in
session-aware linear models (Choi et al., 2021: SLIST, delta_pos); without a recency all count 1.

A linear model errs elsewhere than a sequential one, so that both together are better than either (`members.Ensemble`); it has
I^2 weights, too many to serve, and a student learns it as it learns from a network.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.config import EaseSection
from distill.device import device
from distill.evaluation import record_accuracy
from foundation.artifact import Artifact, Draft, opens
from recommender.split import Sequences
from recommender.torch_ranking import top_k

WEIGHTS = "model.safetensors"
_MAX_ITEMS = 40_000  # three matrices of 6 GB
_MAX_ERROR = 0.01  # of the inverse in float32: 1e-6 on ml-100k with l2 = 100, .02 with .001


@dataclass
class Ease:
    """Item by item float32[I, I], without padding; a member of those who teach (`distill/members.py`)."""

    weight_II: Tensor
    max_length: int
    recency: float | None = None

    @torch.no_grad()
    def see(self, history_BL: Tensor, keep_BL: Tensor, states: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores, not log-probabilities, after each position that `keep_BL` marks, float32[N, I]; it has no states."""
        if states:
            raise ValueError(f"ease has no states ({', '.join(states)}); name another member first")
        at_L = torch.arange(history_BL.shape[1], device=history_BL.device)
        after_LL = at_L[:, None] - at_L
        counts_LL = (-after_LL.clamp(min=0) / (self.recency or torch.inf)).exp() * (after_LL >= 0)
        kept = []
        for history_L, keep_L in zip(history_BL, keep_BL, strict=True):  # a row at a time: all are B * L * I scores
            real_L = history_L > 0
            kept.append(counts_LL[keep_L][:, real_L] @ self.weight_II[history_L[real_L] - 1])
        return torch.cat(kept), {}

    @torch.no_grad()
    def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best of each history, as every recommender."""
        history = torch.from_numpy(history_BL).to(self.weight_II.device)
        recent_BL = history[:, -self.max_length :]
        keep_BL = torch.zeros_like(recent_BL, dtype=torch.bool)
        keep_BL[:, -1] = True
        return top_k(F.pad(self.see(recent_BL, keep_BL)[0], (1, 0)), history, k)


def fit_ease(sequences: Sequences, l2: float, text_weight: float = 0.0, text_IZ: np.ndarray | None = None) -> Tensor:
    """B of the training part, float32[I, I]; `text_IZ` float[I + 1, Z] are item text vectors, of whatever length."""
    num_items = sequences.num_items
    if num_items > _MAX_ITEMS:
        raise ValueError(
            f"ease holds every pair of items in memory, {num_items**2 * 4 / 1e9:.0f} GB for {num_items:,} items; it is for "
            f"{_MAX_ITEMS:,} at most: leave it out of targets.members"
        )
    histories = [sequences.train(u) for u in range(sequences.num_users)]
    users = np.repeat(np.arange(len(histories)), [len(items) for items in histories])
    ones = np.ones(len(users), np.float32)
    taken_UI: Any = sp.csr_matrix((ones, (users, np.concatenate(histories) - 1)), (len(histories), num_items))
    gram_II = torch.from_numpy((taken_UI.T @ taken_UI).toarray()).to(device())
    if text_IZ is not None:
        text = F.normalize(torch.from_numpy(text_IZ[1:]).float().to(device()), dim=-1)
        gram_II.addmm_(text, text.T, alpha=text_weight)
    gram_II.diagonal().add_(l2)
    factor_II, failed = torch.linalg.cholesky_ex(gram_II)
    too_little = ValueError(f"ease.l2 = {l2:g} is too little for float32 beside what it regularises; raise it")
    if failed:
        raise too_little
    inverse_II = torch.cholesky_inverse(factor_II)
    del factor_II
    some_N = torch.arange(0, num_items, max(num_items // 8, 1), device=device())  # columns that tell whether it is the inverse
    error_IN = gram_II @ inverse_II[:, some_N]
    error_IN[some_N, torch.arange(len(some_N))] -= 1
    if not error_IN.abs().max() < _MAX_ERROR:
        raise too_little
    del gram_II
    weight_II = inverse_II.div_(-inverse_II.diagonal().clone()[None])
    return weight_II.fill_diagonal_(0.0)


def build_ease(
    sequences: Sequences, section: EaseSection, max_length: int, draft: Draft, text_IZ: np.ndarray | None = None
) -> None:
    """Solve, save and evaluate it; it reads the last `max_length` items of a history, as the student does."""
    weight_II = fit_ease(sequences, section.l2, section.text_weight, text_IZ)
    save_file({"weight": weight_II.cpu().contiguous()}, draft.path / WEIGHTS)
    record_accuracy(Ease(weight_II, max_length, section.recency), sequences, draft)
    draft.metrics["num_parameters"] = weight_II.numel() - len(weight_II)


@opens
def load_ease(artifact: Artifact) -> Ease:
    """Open what `build_ease` wrote."""
    weight_II = load_file(artifact.file(WEIGHTS), device=str(device()))["weight"]
    if weight_II.dtype != torch.float32 or weight_II.ndim != 2 or weight_II.shape[0] != weight_II.shape[1]:
        raise ValueError(f"its weights are {weight_II.dtype} of the shape {tuple(weight_II.shape)}, not float32, items x items")
    length = artifact.recipe["max_length"]
    if type(length) is not int or length < 1:
        raise ValueError(f"max_length = {length!r} is no number of items")
    recency = artifact.recipe["ease"].get("recency")
    if recency is not None and not (type(recency) is float and recency > 0):
        raise ValueError(f"recency = {recency!r} is no number of items above 0")
    return Ease(weight_II, length, recency)
