"""The student: a causal transformer over the history, tied to one item table.

Shapes: B batch, L length, D hidden, H heads, I items (index 0 is padding, so tables have I + 1 rows), Z text dimensions.

SASRec (Kang and McAuley, 2018) trained with full-softmax cross-entropy (Klenitskiy and Vasilev, 2023). Positions enter only
as a learned bias per head and distance (as in T5), so every training position teaches what the last one needs, and batch size
and length stay dynamic in an exported graph. Padding is on the left; the last column is the most recent item. At serving
time only the last position is read: the last layer computes one query (`last_hidden`).

Item table: e_i = b_i + eta W z_i (ID vector plus projected text vector), folded into one matrix when called; a new item is
eta W z_i.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foundation.artifact import Artifact, Draft, opens
from recommender.config import StudentSection
from recommender.ranking import top_k

WEIGHTS = "model.safetensors"
_INIT_STD = 0.02


class ItemTable(nn.Module):
    """b_i + eta W z_i for all items; without text vectors just b_i. Row 0 (padding) is zero."""

    text_IZ: Tensor

    def __init__(self, num_items: int, hidden_size: int, text_IZ: Tensor | None, text_scale: float) -> None:
        super().__init__()
        self.id_ID = nn.Parameter(torch.randn(num_items + 1, hidden_size) * _INIT_STD)
        self.text_scale = text_scale
        self.projection = None
        if text_IZ is not None:
            self.register_buffer("text_IZ", text_IZ.float())
            self.projection = nn.Linear(text_IZ.shape[1], hidden_size, bias=False)
            nn.init.normal_(self.projection.weight, std=_INIT_STD / math.sqrt(text_IZ.shape[1]))

    def forward(self) -> Tensor:
        """The folded table, float[I + 1, D]."""
        table_ID = self.id_ID
        if self.projection is not None:
            table_ID = table_ID + self.of_text(self.text_IZ)
        return torch.cat([torch.zeros_like(table_ID[:1]), table_ID[1:]])

    def of_text(self, text_NZ: Tensor) -> Tensor:
        """eta W z, the vectors [N, D] of items of which only the text is known."""
        if self.projection is None:
            raise ValueError("this student has no item text (as control-text and student have): new texts mean nothing to it")
        return self.text_scale * self.projection(text_NZ)


class Block(nn.Module):
    """Pre-norm attention with a distance bias, then a GELU feed-forward of four times the width."""

    def __init__(self, hidden_size: int, num_heads: int, max_length: int, dropout: float) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"student.hidden_size = {hidden_size} is not a multiple of student.num_heads = {num_heads}")
        self.num_heads = num_heads
        self.dropout = nn.Dropout(dropout)
        self.attention_norm, self.ffn_norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.query, self.key_value = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, 2 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.bias_LH = nn.Parameter(torch.zeros(max_length, num_heads))
        self.ffn_in, self.ffn_out = nn.Linear(hidden_size, 4 * hidden_size), nn.Linear(4 * hidden_size, hidden_size)

    def forward(self, hidden_BLD: Tensor, mask_B1QL: Tensor, distance_QL: Tensor, num_queries: int | None = None) -> Tensor:
        """Hidden states of the last `num_queries` positions (all by default), float[B, Q, D]."""
        normed_BLD = self.attention_norm(hidden_BLD)
        query_BQD = normed_BLD if num_queries is None else normed_BLD[:, -num_queries:]
        residual_BQD = hidden_BLD if num_queries is None else hidden_BLD[:, -num_queries:]
        query_BHQd = self._split(self.query(query_BQD))
        key_BLD, value_BLD = self.key_value(normed_BLD).chunk(2, dim=-1)
        bias_HQL = F.embedding(distance_QL, self.bias_LH).permute(2, 0, 1)
        scores_BHQL = query_BHQd @ self._split(key_BLD).transpose(-1, -2) / math.sqrt(query_BHQd.shape[-1]) + bias_HQL
        weights_BHQL = self.dropout(scores_BHQL.masked_fill(~mask_B1QL, torch.finfo(hidden_BLD.dtype).min).softmax(-1))
        mixed_BQD = (weights_BHQL @ self._split(value_BLD)).transpose(1, 2).flatten(2)
        residual_BQD = residual_BQD + self.dropout(self.output(mixed_BQD))
        ffn_BQD = self.ffn_out(F.gelu(self.ffn_in(self.ffn_norm(residual_BQD))))
        return residual_BQD + self.dropout(ffn_BQD)

    def _split(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Student(nn.Module):
    """Item table and encoder; `forward` for training, `last_hidden` for serving."""

    def __init__(self, section: StudentSection, num_items: int, text_IZ: Tensor | None) -> None:
        super().__init__()
        self.section = section
        self.items = ItemTable(num_items, section.hidden_size, text_IZ, section.text_scale)
        self.dropout = nn.Dropout(section.dropout)
        sizes = (section.hidden_size, section.num_heads, section.max_length, section.dropout)
        self.blocks = nn.ModuleList(Block(*sizes) for _ in range(section.num_layers))
        self.norm = nn.LayerNorm(section.hidden_size)

    def forward(self, history_BL: Tensor, table_ID: Tensor) -> Tensor:
        """Hidden state after each position, float[B, L, D]; scores are `hidden @ table.T`. L is at most max_length."""
        hidden_BLD, mask_B1LL, distance_LL = self._positions(F.embedding(history_BL, table_ID), history_BL != 0)
        for block in self.blocks:
            hidden_BLD = block(hidden_BLD, mask_B1LL, distance_LL)
        return self.norm(hidden_BLD)

    def last_hidden(self, history_BL: Tensor, table_ID: Tensor, query_BZ: Tensor | None = None) -> Tensor:
        """Hidden state after the last position, float[B, D], from the max_length most recent items of any history.

        A query is a text vector as the items have (zeros: none), taken as a new item of that text which the user had last.
        """
        history_BL = history_BL[:, -self.section.max_length :]
        known_BL, item_BLD = history_BL != 0, F.embedding(history_BL, table_ID)
        if query_BZ is not None:
            known_BL, item_BLD = self._with_query(history_BL, table_ID, query_BZ)
        hidden_BLD, mask_B1LL, distance_LL = self._positions(item_BLD, known_BL)
        for block in self.blocks[:-1]:
            hidden_BLD = block(hidden_BLD, mask_B1LL, distance_LL)
        hidden_B1D = self.blocks[-1](hidden_BLD, mask_B1LL[:, :, -1:], distance_LL[-1:], num_queries=1)
        return self.norm(hidden_B1D)[:, 0]

    def _with_query(self, history_BL: Tensor, table_ID: Tensor, query_BZ: Tensor) -> tuple[Tensor, Tensor]:
        """What is known, bool[B, L + 1], and item vectors, [B, L + 1, D], the query last; not more than max_length."""
        asked_B1 = (query_BZ != 0).any(dim=1, keepdim=True)
        history_BL = torch.where(asked_B1, F.pad(history_BL, (0, 1)), F.pad(history_BL, (1, 0)))[:, -self.section.max_length :]
        last_L = F.pad(torch.ones_like(history_BL[0, :1]), (history_BL.shape[1] - 1, 0))
        query_B1D = self.items.of_text(query_BZ)[:, None]
        return (history_BL != 0) | asked_B1 & (last_L != 0), F.embedding(history_BL, table_ID) + query_B1D * last_L[:, None]

    def _positions(self, item_BLD: Tensor, known_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled item vectors, the causal and padding mask bool[B, 1, L, L], and query-key distances int64[L, L]."""
        position_L = torch.arange(item_BLD.shape[1], device=item_BLD.device)
        distance_LL = position_L[:, None] - position_L[None, :]
        mask_B1LL = (distance_LL >= 0) & known_BL[:, None, None, :]
        return self.dropout(item_BLD * math.sqrt(self.section.hidden_size)), mask_B1LL, distance_LL.clamp(min=0)

    @property
    def num_parameters(self) -> int:
        """Weights read when scoring: the folded item table (padding row left out), encoder and norms."""
        text = sum(p.numel() for p in self.items.projection.parameters()) if self.items.projection is not None else 0
        return sum(p.numel() for p in self.parameters()) - text - self.section.hidden_size


class StudentRecommender:
    """A student in PyTorch as a recommender."""

    def __init__(self, student: Student) -> None:
        self.student = student.eval()
        with torch.no_grad():
            self.table_ID = student.items()

    @torch.no_grad()
    def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        history_BL = np.where((history_BL > 0) & (history_BL < len(self.table_ID)), history_BL, 0)  # a stranger is no item
        history = torch.from_numpy(history_BL).to(self.table_ID.device)
        score_BI = self.student.last_hidden(history, self.table_ID) @ self.table_ID.T
        return top_k(score_BI.float().cpu().numpy(), history_BL, k)


def save_student(student: Student, draft: Draft) -> None:
    """Write the weights, text vectors included."""
    save_file({name: tensor.contiguous() for name, tensor in student.state_dict().items()}, draft.path / WEIGHTS)


@opens
def load_student(artifact: Artifact) -> Student:
    """Open what `save_student` wrote; the architecture is in the artefact's recipe."""
    tensors = load_file(artifact.file(WEIGHTS))
    section = StudentSection.model_validate(artifact.recipe["student"])
    with torch.device("meta"):  # a recipe that does not belong to these weights allocates nothing
        student = Student(section, len(tensors["items.id_ID"]) - 1, tensors.get("items.text_IZ"))
    aligned = {name: tensor.float().clone() for name, tensor in tensors.items()}
    student.load_state_dict(aligned, assign=True)
    return student.eval()
