"""Baselines without training: popularity and item-kNN.

item-kNN: cosine similarity of the items' user sets (Sarwar et al., 2001; Deshpande and Karypis, 2004), the `num_neighbours`
most similar kept per item; a candidate's score is the sum of its similarities to the items of the history.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file

from foundation.artifact import Artifact, Draft, opens
from recommender.ranking import top_k

if TYPE_CHECKING:
    from recommender.split import Sequences

WEIGHTS = "model.safetensors"
_ROWS = 256


class Popularity:
    """Training interactions of each item, the same ranking for everyone (less what was seen)."""

    def __init__(self, count_I: np.ndarray) -> None:
        self.count_I = count_I.astype(np.float32)

    def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return top_k(np.broadcast_to(self.count_I, (len(history_BL), len(self.count_I))), history_BL, k)

    @property
    def num_parameters(self) -> int:
        return len(self.count_I) - 1

    def save(self, folder: Path) -> None:
        save_file({"count": self.count_I}, folder / WEIGHTS)


class ItemKNN:
    """Sum of the similarities to the history's items; `similarity_II` is sparse, row = history item, column = candidate."""

    def __init__(self, similarity_II: Any) -> None:
        self.similarity_II = similarity_II

    def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = np.nonzero(history_BL)
        weights = np.ones(len(rows), np.float32)
        history_BI: Any = sp.csr_matrix(
            (weights, (rows, history_BL[rows, columns])), (len(history_BL), self.similarity_II.shape[0])
        )
        return top_k((history_BI @ self.similarity_II).toarray(), history_BL, k)

    @property
    def num_parameters(self) -> int:
        return self.similarity_II.nnz

    def save(self, folder: Path) -> None:
        matrix = self.similarity_II
        save_file({"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr}, folder / WEIGHTS)


def fit_popularity(sequences: Sequences) -> Popularity:
    """Counts over the training part."""
    return Popularity(sequences.train_counts())


def fit_item_knn(sequences: Sequences, num_neighbours: int = 100) -> ItemKNN:
    """Cosine similarities over the training part, the `num_neighbours` largest of each row."""
    histories = [sequences.train(u) for u in range(sequences.num_users)]
    users = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
    num_rows = sequences.num_items + 1
    taken_UI: Any = sp.csr_matrix(
        (np.ones(len(users), np.float32), (users, np.concatenate(histories))), (len(histories), num_rows)
    )
    norm_I, taken_IU = np.sqrt(np.maximum(taken_UI.sum(axis=0).A1, 1)), taken_UI.T.tocsr()
    kept = []
    for start in range(0, num_rows, _ROWS):  # a user of many items makes whole rows dense: never all rows at once
        rows = slice(start, start + _ROWS)
        similarity = (taken_IU[rows] @ taken_UI).multiply(1 / norm_I[rows, None]).multiply(1 / norm_I[None, :]).tocsr()
        kept += [_largest(similarity.getrow(i), start + i, num_neighbours) for i in range(similarity.shape[0])]
    return ItemKNN(sp.vstack(kept, format="csr", dtype=np.float32))


def _largest(row: Any, own: int, count: int) -> Any:
    """The `count` largest of a row, but of the item itself."""
    order = np.argsort(-row.data, kind="stable")
    keep = np.sort(order[row.indices[order] != own][:count])
    return sp.csr_matrix((row.data[keep], row.indices[keep], [0, len(keep)]), row.shape)


BASELINES = {"popularity": fit_popularity, "item-knn": fit_item_knn}


def build_baseline(name: str, sequences: Sequences, draft: Draft) -> None:
    """Fit a baseline and write it."""
    baseline = BASELINES[name](sequences)
    baseline.save(draft.path)
    draft.metrics["num_parameters"] = baseline.num_parameters


@opens
def load_baseline(artifact: Artifact) -> Popularity | ItemKNN:
    """Open what `build_baseline` wrote."""
    tensors = load_file(artifact.file(WEIGHTS))
    if artifact.kind == "popularity":
        return Popularity(tensors["count"])
    num_rows = len(tensors["indptr"]) - 1
    similarity_II: Any = sp.csr_matrix((tensors["data"], tensors["indices"], tensors["indptr"]), (num_rows, num_rows))
    similarity_II.check_format(full_check=True)
    return ItemKNN(similarity_II)
