"""The exported graph: a whole request, from a history to the top-K items.

    inputs   history     int64[B, L]    oldest first, zeros in front; L may exceed what the encoder reads
    outputs  item_index  int64[B, K]    best first; ties to the lower index; 0 where fewer than K items are left
             score       float32[B, K]  -inf there

Inside: the folded item table, the encoder over the most recent max_length items, the scores of the catalogue, the mask of all
items seen in the history, and TopK. B and L are dynamic; an index the table does not have counts as padding, wherever it comes.
`export.inputs` adds any of

             exclude     int64[B, E]    items not to be returned, whatever the reason; 0 = none
             candidates  int64[B, C]    the only items scored; 0 = none; ties to the earlier one, an item is listed once
             query       float32[B, Z]  the text vector of what the user asks for; zeros = nothing

With `export.first_stage_dims` the catalogue is scored in two stages: all items in their first R principal components, then the
best N of them exactly. The lists are exact where the N hold the top K; the export's comparison with PyTorch says how often.
With `export.first_layer_table` the first layer's projections of every item are a table as well.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recommender.runtimes.base import CANDIDATES, EXCLUDE, HISTORY, QUERY
from recommender.student import Student

PARAMETERS = {HISTORY: "history_BL", EXCLUDE: "exclude_BE", CANDIDATES: "candidates_BC", QUERY: "query_BZ"}
_LARGEST = 65536


class ServingGraph(nn.Module):
    """A student as one function of a request; computes in `dtype`, scores are compared in float32."""

    table_ID: Tensor
    projection_DR: Tensor
    first_RI: Tensor
    layer_I3: Tensor | None
    num_rows: Tensor

    def __init__(
        self,
        student: Student,
        k: int,
        dtype: torch.dtype = torch.float32,
        first_stage: tuple[int, int] = (0, 0),
        table_ID: Tensor | None = None,
        first_layer: bool = False,
    ) -> None:
        """`first_stage` is (R, N), R = 0: one stage; `table_ID` stands for the student's own, which it may continue.

        `first_layer`: look up what the first layer projects of an item.
        """
        super().__init__()
        self.k, (num_dims, self.first_items) = k, first_stage
        self.two_stages = num_dims > 0
        with torch.no_grad():
            whole_ID = student.items() if table_ID is None else table_ID
            self.register_buffer("table_ID", whole_ID.clone().to(dtype))
            if self.two_stages:
                self._check_stages(num_dims)
                axes_DD, _, _ = torch.linalg.svd(whole_ID.T @ whole_ID)
                projection_DR = axes_DD[:, :num_dims].contiguous()
                self.register_buffer("projection_DR", projection_DR.to(dtype))
                self.register_buffer("first_RI", (whole_ID @ projection_DR).T.contiguous().to(dtype))
            self.register_buffer("layer_I3", student.first_layer_table(whole_ID).to(dtype) if first_layer else None)
        self.register_buffer("num_rows", torch.tensor(len(self.table_ID)))  # of the table, which `append` lengthens
        self.student = copy.deepcopy(student).eval().serving().to(dtype)

    def forward(
        self,
        history_BL: Tensor,
        exclude_BE: Tensor | None = None,
        candidates_BC: Tensor | None = None,
        query_BZ: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        history_BL = self._known(history_BL)
        query_BZ = None if query_BZ is None else query_BZ.to(self.table_ID.dtype)
        hidden_BD = self.student.last_hidden(history_BL, self.table_ID, query_BZ, self.layer_I3)
        never_BL = F.pad(history_BL, (1, 0))  # what was seen, and padding, which a full history does not hold
        if exclude_BE is not None:
            never_BL = torch.cat([never_BL, self._known(exclude_BE)], dim=1)
        if candidates_BC is None and self.two_stages:
            first_BI = (hidden_BD @ self.projection_DR @ self.first_RI).float().scatter(1, never_BL, -torch.inf)
            first_BN, index_BN = first_BI.topk(self.first_items, dim=1)
            score_BN = (F.embedding(index_BN, self.table_ID) @ hidden_BD[:, :, None])[:, :, 0].float()
            score_BK, place_BK = score_BN.masked_fill(first_BN == -torch.inf, -torch.inf).topk(self.k, dim=1)
            index_BK = index_BN.gather(1, place_BK)
        elif candidates_BC is None:
            score_BI = (hidden_BD @ self.table_ID.T).float().scatter(1, never_BL, -torch.inf)
            score_BK, index_BK = score_BI.topk(self.k, dim=1)
        else:
            candidates_BC = self._known(candidates_BC)
            score_BC = (F.embedding(candidates_BC, self.table_ID) @ hidden_BD[:, :, None])[:, :, 0].float()
            never_BC = (candidates_BC[:, :, None] == never_BL[:, None, :]).any(dim=2)
            score_BC = F.pad(score_BC.masked_fill(never_BC, -torch.inf), (0, self.k), value=-torch.inf)
            score_BK, place_BK = score_BC.topk(self.k, dim=1)
            index_BK = F.pad(candidates_BC, (0, self.k)).gather(1, place_BK)
        return torch.where(score_BK > -torch.inf, index_BK, 0), score_BK

    def _check_stages(self, num_dims: int) -> None:
        rows, size = self.table_ID.shape
        if num_dims >= size:
            raise ValueError(f"export.first_stage_dims = {num_dims} must be less than the {size} dimensions of the items")
        if self.first_items >= rows - 1:
            raise ValueError(f"export.first_stage_items = {self.first_items} of {rows - 1} items saves nothing; leave it out")

    def _known(self, index_BL: Tensor) -> Tensor:
        return torch.where((index_BL > 0) & (index_BL < self.num_rows), index_BL, 0)


def example(graph: ServingGraph, inputs: Collection[str]) -> dict[str, Tensor]:
    """A request of every input, by parameter name, as the exporter wants to see one."""
    length, text_IZ = graph.student.section.max_length + 2, getattr(graph.student.items, "text_IZ", None)
    if QUERY in inputs and text_IZ is None:
        raise ValueError("export.inputs names 'query', but this student has no item text; take control-text or student")
    items = {PARAMETERS[HISTORY]: length, PARAMETERS[EXCLUDE]: 4, PARAMETERS[CANDIDATES]: 5}
    found = {name: torch.randint(1, len(graph.table_ID), (3, size)) for name, size in items.items()}
    if text_IZ is not None:
        found[PARAMETERS[QUERY]] = torch.ones(3, text_IZ.shape[1])
    wanted = {PARAMETERS[name] for name in (HISTORY, *inputs)}
    return {name: tensor for name, tensor in found.items() if name in wanted}


def dynamic_dimensions(request: Mapping[str, Tensor], min_length: int | None = None) -> dict[str, dict[int, Any]]:
    """What of a request varies, for torch.export: the batch, and how many items are listed (`min_length`: of a history)."""
    batch, found = torch.export.Dim("batch", max=_LARGEST), {}
    for name, parameter in PARAMETERS.items():
        if parameter in request:
            listed = torch.export.Dim(
                "length" if name == HISTORY else f"{name}_length", min=min_length if name == HISTORY else None, max=_LARGEST
            )
            found[parameter] = {0: batch} if name == QUERY else {0: batch, 1: listed}
    return found
