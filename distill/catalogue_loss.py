"""Losses over scores of the whole catalogue, a few positions at a time.

The scores of all N positions and I items of a batch (3,400 x 16,859 on Amazon Games, 230 MB) are the largest tensor of a step,
autograd keeps several of its size, and most of a step goes by in writing them to memory and reading them again. What is needed
of them is their gradient to hidden states and item table: it is taken chunk by chunk, and the scores are dropped (Hsu et al.,
2024: Liger Kernel, its fused linear cross-entropy; here for any loss that is a sum over positions).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_MAX_SCORES_CPU, _MAX_SCORES_GPU = 1 << 21, 1 << 28  # of a chunk: 8 MiB of float32, which a cache holds, and 1 GiB
_MIN_ROWS = 128  # of a chunk all the same: each makes a gradient as large as the table

Terms = dict[str, Tensor]


def over_catalogue(hidden_ND: Tensor, table_ID: Tensor, terms: Callable[[Tensor, slice], Terms]) -> Terms:
    """The sums over chunks of what `terms(scores_RI, rows)` says of the R positions of a chunk, which `rows` cuts out of N.

    `loss` is differentiable (once) in `hidden_ND`, of one position or more, and in `table_ID`; of the other terms only their
    values are kept. What `terms` draws at random it draws for each chunk.
    """
    most = _MAX_SCORES_GPU if hidden_ND.is_cuda else _MAX_SCORES_CPU
    rows_at_once = max(most // len(table_ID), _MIN_ROWS)
    own_ID = table_ID.detach().requires_grad_()
    sums, by_hidden, by_table_ID = Terms(), list[Tensor](), torch.zeros_like(own_ID)
    for start in range(0, len(hidden_ND), rows_at_once):
        rows = slice(start, start + rows_at_once)
        own_RD = hidden_ND[rows].detach().requires_grad_()
        found = terms(own_RD @ own_ID.T, rows)
        by_hidden_RD, by_own_ID = torch.autograd.grad(found["loss"], (own_RD, own_ID))
        by_hidden.append(by_hidden_RD)
        by_table_ID += by_own_ID
        for name, term in found.items():
            sums[name] = sums.get(name, 0) + term.detach()
    return sums | {"loss": _Known.apply(hidden_ND, table_ID, sums["loss"], torch.cat(by_hidden), by_table_ID)}


def cross_entropy(hidden_ND: Tensor, table_ID: Tensor, label_N: Tensor) -> Tensor:
    """Of the items `label_N` (0-based), a mean over positions; 0 where there is none."""
    if not len(label_N):
        return (hidden_ND.sum() + table_ID.sum()) * 0

    def mean(scores_RI: Tensor, rows: slice) -> Terms:
        return {"loss": F.cross_entropy(scores_RI, label_N[rows], reduction="sum") / len(label_N)}

    return over_catalogue(hidden_ND, table_ID, mean)["loss"]


class _Known(torch.autograd.Function):
    """A value whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, table_ID: Tensor, value: Tensor, *gradients: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *scales: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        by_hidden_ND, by_table_ID = ctx.saved_tensors
        return scales[0] * by_hidden_ND, scales[0] * by_table_ID, None, None, None
