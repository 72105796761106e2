"""Metrics against a slow reference, and the evaluator against constructed recommenders with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recommender.baselines import fit_item_knn, fit_popularity
from recommender.evaluate import evaluate, target_ranks
from recommender.metrics import (
    _resampled_means,
    bootstrap_ci,
    hit_rate,
    ndcg,
    paired_relative_difference,
    reciprocal_rank,
    summary,
)
from recommender.ranking import pad_left, top_k
from recommender.split import Sequences
from recommender.torch_ranking import sorted_top_k


@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.integers(1, 20))
def test_metrics_equal_their_definitions(ranks: list[int], k: int) -> None:
    rank_U = np.array(ranks)
    inside = [1 <= rank <= k for rank in ranks]
    assert hit_rate(rank_U, k).tolist() == [float(hit) for hit in inside]
    assert ndcg(rank_U, k) == pytest.approx([1 / math.log2(1 + r) if hit else 0 for r, hit in zip(ranks, inside, strict=True)])
    assert reciprocal_rank(rank_U, k) == pytest.approx([1 / r if hit else 0 for r, hit in zip(ranks, inside, strict=True)])


def test_bootstrap_covers_the_mean() -> None:
    """95% intervals of 200 samples of a known mean hold it about 95% of the time (binomial 3-sigma: 90 to 99%)."""
    rng = np.random.default_rng(0)
    held = [
        low <= 0.3 <= high
        for low, high in (bootstrap_ci((rng.random(100) < 0.3).astype(float), 500, seed) for seed in range(200))
    ]
    assert 0.90 <= np.mean(held) <= 0.99


def test_paired_difference() -> None:
    rng = np.random.default_rng(0)
    old_U = rng.random(500)
    shift = paired_relative_difference(old_U * 1.1, old_U)
    assert shift["relative"] == pytest.approx(0.1)
    assert shift["ci95"] == pytest.approx([0.1, 0.1])
    noise = paired_relative_difference(rng.random(500), old_U)
    assert noise["ci95"][0] < noise["relative"] < noise["ci95"][1]
    assert paired_relative_difference(old_U, np.zeros(500)) is None
    with pytest.raises(ValueError, match="paired comparison"):
        paired_relative_difference(old_U[:3], old_U)


def test_intervals_repeat_and_follow_their_seed() -> None:
    value_U = np.random.default_rng(1).random(30)
    assert bootstrap_ci(value_U) == bootstrap_ci(value_U, seed=0) != bootstrap_ci(value_U, seed=1)
    new_U = value_U**2
    ci = {seed: paired_relative_difference(new_U, value_U, seed=seed)["ci95"] for seed in (0, 1)}
    assert paired_relative_difference(new_U, value_U)["ci95"] == ci[0] != ci[1]


def test_resampling_draws_every_user_and_as_often_as_asked() -> None:
    means = _resampled_means(np.eye(3), 1001, seed=0)
    assert means.shape == (1001, 3)
    assert means.mean(axis=0) == pytest.approx([1 / 3] * 3, abs=0.05)
    assert (means == _resampled_means(np.eye(3), 1001, seed=0)).all()


def test_a_ratio_needs_ten_hits_and_survives_a_draw_without_any() -> None:
    old_U = np.zeros(4000)
    old_U[:10] = 1.0
    with np.errstate(all="raise"):
        found = paired_relative_difference(old_U, old_U, num_resamples=60_000)  # about three draws without a hit
    assert found is not None
    assert found["ci95"] == [0.0, 0.0]
    old_U[0] = 0.0
    assert paired_relative_difference(old_U, old_U) is None


def test_summary() -> None:
    found = summary(np.array([1, 3, 0, 11]), 10)
    assert found == pytest.approx({"hr_at_10": 0.5, "ndcg_at_10": (1 + 0.5) / 4, "mrr_at_10": (1 + 1 / 3) / 4})
    assert hit_rate(np.array([1]), 1).dtype == np.float64


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(2, 30))
def test_top_k_is_a_stable_sort_without_seen_items(seed: int, k: int, num_items: int) -> None:
    rng = np.random.default_rng(seed)
    score_BI = rng.integers(0, 4, (3, num_items + 1)).astype(np.float32)
    history_BL = rng.integers(0, num_items + 1, (3, 4))
    k = min(k, num_items)
    index_BK, top_BK = top_k(score_BI, history_BL, k)
    on_gpu = sorted_top_k(torch.from_numpy(score_BI), torch.from_numpy(history_BL), k)
    for found, expected in zip(on_gpu, (index_BK, top_BK), strict=True):
        assert np.array_equal(found, expected)
    for row in range(3):
        seen = set(history_BL[row]) | {0}
        expected = sorted((i for i in range(num_items + 1) if i not in seen), key=lambda i: (-score_BI[row, i], i))[:k]
        assert index_BK[row, : len(expected)].tolist() == expected
        assert top_BK[row, : len(expected)].tolist() == score_BI[row, expected].tolist()
        assert np.isneginf(top_BK[row, len(expected) :]).all()


def test_pad_left() -> None:
    histories = [np.array([1, 2, 3]), np.array([], np.int32), np.array([4])]
    assert pad_left(histories).tolist() == [[1, 2, 3], [0, 0, 0], [0, 0, 4]]
    assert pad_left(histories, 2).tolist() == [[2, 3], [0, 0], [0, 4]]
    assert pad_left([np.array([], np.int64)]).shape == (1, 1)


class Successor:
    """Ranks the item after the last one first, then the rest by index: knows the planted pattern."""

    num_items = 60

    def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        score_BI = np.zeros((len(history_BL), self.num_items + 1), np.float32)
        score_BI[np.arange(len(history_BL)), history_BL[:, -1] % self.num_items + 1] = 1
        return top_k(score_BI, history_BL, k)


def test_evaluator_finds_the_planted_pattern(sequences: Sequences) -> None:
    users = sequences.evaluated_users
    follows = np.array([sequences.history(u, "test")[-1] % 60 + 1 for u in users]) == sequences.targets(users, "test")
    rank_U = evaluate(Successor(), sequences, "test", k=20)
    assert (rank_U[follows] == 1).all()
    assert 0.8 < follows.mean() < 0.97


def test_evaluation_does_not_depend_on_batches(sequences: Sequences) -> None:
    baseline = fit_item_knn(sequences)
    assert (evaluate(baseline, sequences, "test", batch_size=1) == evaluate(baseline, sequences, "test", batch_size=50)).all()


def test_target_ranks() -> None:
    assert target_ranks(np.array([[5, 6, 7], [1, 2, 3]]), np.array([7, 9])).tolist() == [3, 0]


def test_baselines_against_slow_references(sequences: Sequences) -> None:
    popularity, knn = fit_popularity(sequences), fit_item_knn(sequences, num_neighbours=10_000)
    assert (popularity.count_I == sequences.train_counts()).all()
    taken_IU = np.zeros((61, sequences.num_users))
    for u in range(sequences.num_users):
        taken_IU[sequences.train(u), u] = 1
    norm_I = np.maximum(np.linalg.norm(taken_IU, axis=1), 1)
    cosine_II = taken_IU @ taken_IU.T / norm_I[:, None] / norm_I[None]
    np.fill_diagonal(cosine_II, 0)
    assert np.allclose(knn.similarity_II.toarray(), cosine_II, atol=1e-6)


def test_knn_keeps_the_largest(sequences: Sequences) -> None:
    full, cut = fit_item_knn(sequences, 10_000).similarity_II.toarray(), fit_item_knn(sequences, 3).similarity_II.toarray()
    assert ((cut > 0).sum(axis=1) <= 3).all()
    assert cut.sum(axis=1) == pytest.approx(np.sort(full, axis=1)[:, -3:].sum(axis=1), rel=1e-5)


def test_a_history_of_a_million_items_is_evaluated_in_bounded_memory() -> None:
    """Its batch holds few neighbours: 64 rows as long would be 512 MB of padding."""
    rng, count = np.random.default_rng(0), 1_000_000
    lengths = [count, *[5] * 70, 3_000]
    offsets = np.cumsum([0, *lengths])
    sequences = Sequences([f"u{n}" for n in range(72)], ["a", "b", "c"], offsets, rng.integers(1, 4, offsets[-1]))
    sizes = []

    class First:
        def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            sizes.append(history_BL.shape)
            return np.tile(np.arange(1, k + 1), (len(history_BL), 1)), np.zeros((len(history_BL), k), np.float32)

    ranks = evaluate(First(), sequences, "test", k=3)
    assert ranks.tolist() == sequences.targets(sequences.evaluated_users, "test").tolist()
    assert sum(rows for rows, _ in sizes) == 72
    assert sizes[0] == (64, 4)
    assert max(rows * width for rows, width in sizes) <= 1 << 22
