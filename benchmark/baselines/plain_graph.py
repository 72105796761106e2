"""The plain serving graph: a student as it is usually exported. Frozen: speed-ups are told against it.

Every layer computes every position; then the last one's scores of all items, the seen ones scattered to minus infinity, TopK.
The same weights and the same lists as `export/graph.py`, without anything that was done there for speed.
"""

from __future__ import annotations

import copy
import math

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.graph import dynamic_dimensions
from export.to_onnx import to_onnx
from recommender.student import Block, Student

_OPSET = 21


class PlainEncoder(nn.Module):
    """history int64[B, L], zeros in front, to the hidden state after its last item, float32[B, D]."""

    table_ID: Tensor

    def __init__(self, student: Student) -> None:
        super().__init__()
        with torch.no_grad():
            self.register_buffer("table_ID", student.items().clone())
        self.student = copy.deepcopy(student).eval()

    def forward(self, history_BL: Tensor) -> Tensor:
        recent_BL = history_BL[:, -self.student.section.max_length :]
        position_L = torch.arange(recent_BL.shape[1])
        distance_LL = position_L[:, None] - position_L[None, :]
        mask_B1LL = (distance_LL >= 0) & (recent_BL != 0)[:, None, None, :]
        hidden_BLD = F.embedding(recent_BL, self.table_ID) * math.sqrt(self.student.section.hidden_size)
        for block in self.student.blocks:
            assert isinstance(block, Block)
            hidden_BLD = _layer(block, hidden_BLD, mask_B1LL, distance_LL.clamp(min=0))
        return self.student.norm(hidden_BLD)[:, -1]


class PlainGraph(nn.Module):
    """history int64[B, L], zeros in front, to item_index int64[B, K] and score float32[B, K]."""

    def __init__(self, student: Student, k: int) -> None:
        super().__init__()
        self.k, self.encoder = k, PlainEncoder(student)

    def forward(self, history_BL: Tensor) -> tuple[Tensor, Tensor]:
        score_BI = self.encoder(history_BL) @ self.encoder.table_ID.T
        score_BI = score_BI.scatter(1, F.pad(history_BL, (1, 0)), -torch.inf)
        score_BK, index_BK = score_BI.topk(self.k, dim=1)
        return index_BK, score_BK


def _layer(block: Block, hidden_BLD: Tensor, mask_B1LL: Tensor, distance_LL: Tensor) -> Tensor:
    normed_BLD = block.attention_norm(hidden_BLD)
    query_BHLd, key_BHLd, value_BHLd = (
        projected_BLD.unflatten(-1, (block.num_heads, -1)).transpose(1, 2)
        for projected_BLD in (block.query(normed_BLD), *block.key_value(normed_BLD).chunk(2, dim=-1))
    )
    bias_HLL = F.embedding(distance_LL, block.bias_LH).permute(2, 0, 1)
    score_BHLL = query_BHLd @ key_BHLd.transpose(-1, -2) / math.sqrt(query_BHLd.shape[-1]) + bias_HLL
    weight_BHLL = score_BHLL.masked_fill(~mask_B1LL, torch.finfo(score_BHLL.dtype).min).softmax(-1)
    hidden_BLD = hidden_BLD + block.output((weight_BHLL @ value_BHLd).transpose(1, 2).flatten(2))
    return hidden_BLD + block.ffn_out(F.gelu(block.ffn_in(block.ffn_norm(hidden_BLD))))


def to_plain_onnx(module: nn.Module, student: Student, outputs: tuple[str, ...]) -> onnx.ModelProto:
    """A module of this file as ONNX, with dynamic batch and length."""
    request = {"history_BL": torch.ones(3, student.section.max_length + 2, dtype=torch.long)}
    return to_onnx(module, request, dynamic_dimensions(request), (("history",), outputs), _OPSET, {})
