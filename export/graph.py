"""The exported graph: a whole request, from a history to the top-K items.

    inputs   history     int64[B, L]    oldest first, zeros in front; L may exceed what the encoder reads
    outputs  item_index  int64[B, K]    best first; ties to the lower index
             score       float32[B, K]

Inside: the folded item table, the encoder over the most recent max_length items, the scores of the catalogue, the mask of all
items seen in the history, and TopK. B and L are dynamic.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recommender.student import Student

INPUT, OUTPUTS = "history", ("item_index", "score")


class ServingGraph(nn.Module):
    """A student as one function of the history."""

    table_ID: Tensor

    def __init__(self, student: Student, k: int) -> None:
        super().__init__()
        self.student, self.k = student.eval(), k
        with torch.no_grad():
            self.register_buffer("table_ID", student.items().clone())

    def forward(self, history_BL: Tensor) -> tuple[Tensor, Tensor]:
        hidden_BD = self.student.last_hidden(history_BL, self.table_ID)
        never_BL = F.pad(history_BL, (1, 0))  # what was seen, and padding, which a full history does not hold
        score_BI = (hidden_BD @ self.table_ID.T).scatter(1, never_BL, -torch.inf)
        score_BK, index_BK = score_BI.topk(self.k, dim=1)
        return index_BK, score_BK
