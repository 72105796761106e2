"""The student: a causal transformer over the history, tied to one item table.

Shapes: B batch, L length, D hidden, H heads, I items (index 0 is padding, so tables have I + 1 rows), Z text dimensions.

SASRec (Kang and McAuley, 2018) trained with full-softmax cross-entropy (Klenitskiy and Vasilev, 2023). Positions enter only
as a learned bias per head and distance (as in T5), so every training position teaches what the last one needs, and batch size
and length stay dynamic in an exported graph. Padding is on the left; the last column is the most recent item. At serving
time only the last position is read: the last layer computes one query (`last_hidden`), and neither keys nor values. What the
first layer projects of an item depends on the item alone: it may be looked up (`first_layer_table`).

Item table: e_i = b_i + eta W z_i (ID vector plus projected text vector), folded into one matrix when called; a new item is
eta W z_i.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foundation.artifact import Artifact, Draft, opens
from recommender.config import StudentSection
from recommender.torch_ranking import top_k

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
        self.heads: nn.ParameterList | None = None  # of a block that serves

    def forward(
        self, hidden_BLD: Tensor, mask_B1LL: Tensor, distance_LL: Tensor, projected: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Hidden states of all positions, float[B, L, D]; `projected` is `project(hidden_BLD)` where that is known."""
        projected = self.project(hidden_BLD) if projected is None else projected
        query_BHLd, key_BHLd, value_BHLd = (self._split(part_BLD) for part_BLD in projected)
        bias_HLL = F.embedding(distance_LL, self.bias_LH).permute(2, 0, 1)
        scores_BHLL = query_BHLd @ key_BHLd.transpose(-1, -2) / math.sqrt(query_BHLd.shape[-1]) + bias_HLL
        mixed_BLD = (self._weights(scores_BHLL, mask_B1LL) @ value_BHLd).transpose(1, 2).flatten(2)
        return self._feed_forward(hidden_BLD, mixed_BLD)

    def project(self, hidden_BLD: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values, each float[..., D]."""
        normed_BLD = self.attention_norm(hidden_BLD)
        return self.query(normed_BLD), *self.key_value(normed_BLD).chunk(2, dim=-1)

    def last(self, hidden_BLD: Tensor, mask_B1L: Tensor, distance_1L: Tensor) -> Tensor:
        """The hidden state of the last position alone, float[B, 1, D].

        One query needs no keys, for q (W_k x) = (q W_k) x, nor values, for sum a W_v x = W_v sum a x: products of L vectors
        become products of one. The key's bias adds the same to all scores and is left out.
        """
        normed_BLD = self.attention_norm(hidden_BLD)
        matrices = list(self.heads) if self.heads is not None else self._head_matrices()
        key_HdD, value_HDd = matrices[: self.num_heads], matrices[self.num_heads :]
        query_B1Hd = self.query(normed_BLD[:, -1:]).unflatten(-1, (self.num_heads, -1))
        query_BHD = torch.cat([query_B1Hd[:, :, head] @ key_dD for head, key_dD in enumerate(key_HdD)], dim=1)
        scores_BHL = query_BHD @ normed_BLD.transpose(1, 2) / math.sqrt(query_B1Hd.shape[-1])
        scores_BHL = scores_BHL + F.embedding(distance_1L[0], self.bias_LH).T
        mixed_BHD = self._weights(scores_BHL, mask_B1L) @ normed_BLD
        heads = [mixed_BHD[:, head : head + 1] @ value_Dd for head, value_Dd in enumerate(value_HDd)]
        return self._feed_forward(hidden_BLD[:, -1:], torch.cat(heads, dim=-1) + self.key_value.bias.chunk(2)[1])

    def keep_heads(self) -> None:
        """Hold the heads' matrices each by itself: exported graphs have them as constants then, which quantizers look for."""
        self.heads = nn.ParameterList(matrix.contiguous() for matrix in self._head_matrices())

    def _head_matrices(self) -> list[Tensor]:
        """Keys' [d, D] of every head, then values' [D, d]."""
        key_HdD, value_HdD = self.key_value.weight.view(2, self.num_heads, -1, self.key_value.in_features)
        return [*key_HdD, *(value_dD.T for value_dD in value_HdD)]

    def _weights(self, scores_BHQL: Tensor, mask_B1QL: Tensor) -> Tensor:
        return self.dropout(scores_BHQL.masked_fill(~mask_B1QL, torch.finfo(scores_BHQL.dtype).min).softmax(-1))

    def _feed_forward(self, hidden_BQD: Tensor, mixed_BQD: Tensor) -> Tensor:
        hidden_BQD = hidden_BQD + self.dropout(self.output(mixed_BQD))
        return hidden_BQD + self.dropout(self.ffn_out(F.gelu(self.ffn_in(self.ffn_norm(hidden_BQD)))))

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
        return self.encode(F.embedding(history_BL, table_ID), history_BL != 0)

    def states(self, history_BL: Tensor, table_ID: Tensor) -> dict[str, Tensor]:
        """`hidden`, what `forward` gives, and the last layer's `query`, `key` and `value`, each float[B, L, D]."""
        projections: list[Tensor] = []
        hidden_BLD = self.encode(F.embedding(history_BL, table_ID), history_BL != 0, projections=projections)
        return {"hidden": hidden_BLD} | dict(zip(("query", "key", "value"), projections, strict=True))

    def encode(self, item_BLD: Tensor, known_BL: Tensor, projections: list[Tensor] | None = None) -> Tensor:
        """The same of item vectors, of which those that are not known are padding.

        `projections`, where given, gets the last layer's queries, keys and values, each float[B, L, D].
        """
        hidden_BLD, mask_B1LL, distance_LL = self._positions(item_BLD, known_BL)
        layers = self._layers()
        for block in layers[:-1]:
            hidden_BLD = block(hidden_BLD, mask_B1LL, distance_LL)
        projected = layers[-1].project(hidden_BLD)
        if projections is not None:
            projections.extend(projected)
        return self.norm(layers[-1](hidden_BLD, mask_B1LL, distance_LL, projected))

    def last_hidden(
        self, history_BL: Tensor, table_ID: Tensor, query_BZ: Tensor | None = None, first_I3: Tensor | None = None
    ) -> Tensor:
        """Hidden state after the last position, float[B, D], from the max_length most recent items of any history.

        A query is a text vector as the items have (zeros: none), taken as a new item of that text which the user had last.
        `first_I3` is `first_layer_table(table_ID)`, looked up instead of computed.
        """
        history_BL = history_BL[:, -self.section.max_length :]
        known_BL, query_BLD = history_BL != 0, None
        if query_BZ is not None:
            history_BL, known_BL, query_BLD = self._with_query(history_BL, query_BZ)
        item_BLD = F.embedding(history_BL, table_ID)
        item_BLD = item_BLD if query_BLD is None else item_BLD + query_BLD
        hidden_BLD, mask_B1LL, distance_LL = self._positions(item_BLD, known_BL)
        layers = self._layers()
        for number, block in enumerate(layers[:-1]):
            projected = None
            if number == 0 and first_I3 is not None:
                projected = F.embedding(history_BL, first_I3).chunk(3, dim=-1)
                if query_BLD is not None:  # it is no item, and stands last
                    last = block.project(hidden_BLD[:, -1:])
                    projected = [torch.cat([x[:, :-1], own], dim=1) for x, own in zip(projected, last, strict=True)]
            hidden_BLD = block(hidden_BLD, mask_B1LL, distance_LL, projected)
        return self.norm(layers[-1].last(hidden_BLD, mask_B1LL[:, 0, -1:], distance_LL[-1:]))[:, 0]

    def first_layer_table(self, table_ID: Tensor) -> Tensor:
        """Queries, keys and values of all items in the first layer, float[I + 1, 3 D], for `last_hidden`."""
        if len(self.blocks) < 2:
            raise ValueError("a student of one layer has none whose projections could be looked up: it computes a single query")
        return torch.cat(list(self._layers()[0].project(table_ID * math.sqrt(self.section.hidden_size))), dim=-1)

    def serving(self) -> Student:
        """This student, its last layer prepared for `last_hidden` alone."""
        self._layers()[-1].keep_heads()
        return self

    def _layers(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))

    def _with_query(self, history_BL: Tensor, query_BZ: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Items int64[B, L], what is known bool[B, L], and the query's vector float[B, L, D], last; L at most max_length."""
        asked_B1 = (query_BZ != 0).any(dim=1, keepdim=True)
        history_BL = torch.where(asked_B1, F.pad(history_BL, (0, 1)), F.pad(history_BL, (1, 0)))[:, -self.section.max_length :]
        last_L = F.pad(torch.ones_like(history_BL[0, :1]), (history_BL.shape[1] - 1, 0))
        query_BLD = self.items.of_text(query_BZ)[:, None] * last_L[:, None]
        return history_BL, (history_BL != 0) | asked_B1 & (last_L != 0), query_BLD

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
        return top_k(score_BI, history, k)


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
