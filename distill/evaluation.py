"""What every trained model's artefact records of its accuracy, and the ranks kept for paired comparisons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from distill.device import rows_at_once
from foundation.artifact import Artifact, Draft, opens
from foundation.content import ONE_FILE
from recommender.config import OptimSection
from recommender.evaluate import batches_by_length, evaluate
from recommender.metrics import ndcg, summary
from recommender.ranking import Recommender, pad_left
from recommender.split import Sequences

_ROWS, _MAX_SCORES = 256, 1 << 26  # users at a time, and scores (256 MiB)
RANKS, CURVE = "ranks.parquet", "training.parquet"


def record_accuracy(recommender: Recommender, sequences: Sequences, draft: Draft) -> dict[str, Any]:
    """Evaluate on validation and test, keep the ranks in the artefact, return (and record) the means."""
    rows = rows_at_once(sequences.num_items, cpu=64, gpu=512)
    ranks = {part: evaluate(recommender, sequences, part, batch_size=rows) for part in ("validation", "test")}
    users = [sequences.user_ids[u] for u in sequences.evaluated_users]
    pl.DataFrame({"user_id": users, **ranks}).write_parquet(draft.path / RANKS)
    figures = {part: summary(rank_U) for part, rank_U in ranks.items()} | {"targets_sha256": sequences.targets_sha256()}
    draft.metrics |= figures
    return figures


@opens
def kept_ranks(artifact: Artifact, part: str) -> np.ndarray:
    """The ranks kept of `part` ("validation" or "test"), int64[U], in the order of the sequences' evaluated users."""
    return pl.read_parquet(artifact.file(RANKS), **ONE_FILE)[part].cast(pl.Int64).to_numpy()


class Validator:
    """Validation NDCG@10 of a model that gives hidden states, for model selection: exact ranks, computed in torch."""

    def __init__(self, sequences: Sequences, max_length: int, section: OptimSection, device: torch.device) -> None:
        users = sequences.evaluated_users
        if section.validation_users and section.validation_users < len(users):
            users = np.sort(np.random.default_rng(0).permutation(users)[: section.validation_users])
        self.histories = [sequences.history(u, "validation") for u in users]
        self.targets, self.max_length, self.device = sequences.targets(users, "validation"), max_length, device

    @torch.no_grad()
    def __call__(self, last_hidden: Callable[[Tensor], Tensor], table_ID: Tensor) -> float:
        """`last_hidden(history int64[B, L])` gives float[B, D]."""
        ranks, batch_size = [], max(min(_ROWS, _MAX_SCORES // len(table_ID)), 1)
        for rows in batches_by_length([len(history) for history in self.histories], batch_size):
            history_BL = torch.from_numpy(pad_left([self.histories[row] for row in rows])).to(self.device)
            target_B = torch.from_numpy(self.targets[rows]).long().to(self.device)
            score_BI = last_hidden(history_BL[:, -self.max_length :]).float() @ table_ID.float().T
            if not score_BI.sum().isfinite():  # one pass, where a mask of them all takes as long as the product
                raise ValueError("the model's scores are not finite; lower the learning rate, or start from another checkpoint")
            score_BI.scatter_(1, history_BL, -torch.inf)
            score_BI[:, 0] = -torch.inf
            ranks.append(rank_of(score_BI, target_B).cpu().numpy())
        return float(ndcg(np.concatenate(ranks), 10).mean())


def rank_of(score_BI: Tensor, target_B: Tensor) -> Tensor:
    """1 + items scored higher + items scored equal at a lower index, int64[B]."""
    own_B1 = score_BI.gather(1, target_B[:, None])
    above_B, not_below_B = (mask_BI.sum(1, dtype=torch.int32) for mask_BI in (score_BI > own_B1, score_BI >= own_B1))
    rank_B = 1 + above_B.long()
    tied_R = (not_below_B > rank_B).nonzero()[:, 0]
    if len(tied_R):
        before_RI = torch.arange(score_BI.shape[1], device=score_BI.device)[None] < target_B[tied_R, None]
        rank_B[tied_R] += ((score_BI[tied_R] == own_B1[tied_R]) & before_RI).sum(1)
    return rank_B


class EpochBatches:
    """The batches of an epoch, which are kept until another one is asked for."""

    def __init__(self, windows: Any, batch_size: int, seed: int) -> None:
        self.windows, self.batch_size, self.seed = windows, batch_size, seed
        self.current: tuple[int, list] = (-1, [])

    def __call__(self, epoch: int) -> list:
        if self.current[0] != epoch:
            self.current = (epoch, self.windows.epoch(epoch, self.batch_size, self.seed))
        return self.current[1]


def save_history(history: list[dict[str, Any]], folder: Path) -> None:
    """The training curve as Parquet."""
    pl.DataFrame(history).write_parquet(folder / CURVE)


@opens
def kept_history(artifact: Artifact) -> list[dict[str, Any]]:
    """The training curve, epoch by epoch: the score on validation, and the mean of every term of the loss."""
    return pl.read_parquet(artifact.file(CURVE), **ONE_FILE).to_dicts()
