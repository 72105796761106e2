"""`ranking.top_k` where the scores are a tensor: on a GPU the lists are made there, and only they are copied."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recommender import ranking


def top_k(score_BI: Tensor, history_BL: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Seen filter and top-k of scores over item_index 0..I (column 0 is padding); ties to the lower index."""
    if score_BI.device.type == "cpu":
        return ranking.top_k(score_BI.float().numpy(), history_BL.numpy(), k)
    return sorted_top_k(score_BI, history_BL, k)


def sorted_top_k(score_BI: Tensor, history_BL: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The same by a stable sort: `torch.topk` promises no order of ties."""
    score_BI = score_BI.float().nan_to_num(nan=-torch.inf).scatter(1, history_BL, -torch.inf)
    score_BI[:, 0] = -torch.inf
    ordered = score_BI.sort(dim=1, descending=True, stable=True)
    score_BK, index_BK = ordered.values[:, :k], ordered.indices[:, :k]
    return index_BK.masked_fill(score_BK == -torch.inf, 0).cpu().numpy(), score_BK.cpu().numpy()
