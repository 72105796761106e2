"""Metrics beyond accuracy against references written as loops, and against their bounds; slices; drift."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.stats import entropy, kendalltau

from benchmark.accuracy import ALL, Judge, accuracy_figures
from foundation.recipe import load_recipe
from recdistill.pipeline import Pipeline
from recdistill.recipe import Recipe
from recommender import beyond
from recommender.baselines import load_baseline
from recommender.evaluate import recommend_all, target_ranks
from recommender.slices import slices
from recommender.split import Sequences

NUM_ITEMS, K, USERS = 30, 6, 25
RNG = np.random.default_rng(0)
TOP = np.stack([RNG.permutation(NUM_ITEMS)[:K] + 1 for _ in range(USERS)])
OTHER = np.stack([RNG.permutation(NUM_ITEMS)[:K] + 1 for _ in range(USERS)])
COUNT = np.concatenate([[0], RNG.integers(0, 20, NUM_ITEMS)])
VECTORS = np.concatenate([np.zeros((1, 4)), RNG.normal(size=(NUM_ITEMS, 4))])
HISTORIES = [RNG.integers(1, NUM_ITEMS + 1, length) for length in RNG.integers(1, 12, USERS)]
CATEGORIES = [[str(n) for n in RNG.permutation(4)[: RNG.integers(0, 4)]] for _ in range(NUM_ITEMS)]


@pytest.fixture(autouse=True)
def few_users_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beyond, "_USERS", 7)


def test_novelty() -> None:
    expected = [sum(-math.log2(max(COUNT[i], 1) / USERS) for i in top) / K for top in TOP]
    assert beyond.novelty(TOP, COUNT, USERS) == pytest.approx(expected)


def test_intra_list_diversity() -> None:
    def cosine(one: np.ndarray, other: np.ndarray) -> float:
        return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))

    expected = [np.mean([1 - cosine(VECTORS[a], VECTORS[b]) for a, b in itertools.combinations(top, 2)]) for top in TOP]
    assert beyond.intra_list_diversity(TOP, VECTORS) == pytest.approx(expected)
    same = np.tile(VECTORS[1:2], (NUM_ITEMS + 1, 1))
    assert beyond.intra_list_diversity(TOP, same) == pytest.approx(0.0, abs=1e-12)
    assert beyond.intra_list_diversity(TOP, np.zeros_like(VECTORS)) == pytest.approx(1.0)


def test_coverage_and_gini() -> None:
    assert beyond.coverage(TOP, NUM_ITEMS) == len({item for top in TOP for item in top}) / NUM_ITEMS
    times = [sum(item in top for top in TOP) for item in range(1, NUM_ITEMS + 1)]
    pairs = sum(abs(a - b) for a in times for b in times)
    assert beyond.gini(TOP, NUM_ITEMS) == pytest.approx(pairs / (2 * NUM_ITEMS**2 * np.mean(times)))
    alike = np.arange(1, NUM_ITEMS + 1).reshape(-1, K)
    assert beyond.gini(alike, NUM_ITEMS) == pytest.approx(0.0)
    assert beyond.gini(np.ones((9, 1), int), NUM_ITEMS) == pytest.approx(1 - 1 / NUM_ITEMS)


def test_popularity_lift() -> None:
    own = np.mean([np.mean([COUNT[i] for i in history]) for history in HISTORIES])
    expected = np.mean([np.mean([COUNT[i] for i in top]) for top in TOP]) / own - 1
    assert beyond.popularity_lift(TOP, HISTORIES, COUNT) == pytest.approx(expected)
    assert beyond.popularity_lift(TOP, HISTORIES, np.zeros_like(COUNT)) == 0.0


def test_miscalibration() -> None:
    shares = beyond.category_shares(CATEGORIES)
    assert shares.shape == (NUM_ITEMS + 1, 4)

    def distribution(items: np.ndarray) -> list[float]:
        weight = [0.0] * 4
        for item in items:
            for name in CATEGORIES[item - 1]:
                weight[int(name)] += 1 / len(CATEGORIES[item - 1])
        return [w / sum(weight) for w in weight] if sum(weight) else weight

    expected = []
    for top, history in zip(TOP, HISTORIES, strict=True):
        p, q = distribution(history), distribution(top)
        smooth = [0.99 * b + 0.01 * a for a, b in zip(p, q, strict=True)]
        expected.append(sum(a * math.log(a / b) for a, b in zip(p, smooth, strict=True) if a > 0))
        if sum(p) and sum(q):
            assert expected[-1] == pytest.approx(entropy(p, smooth))
    found = beyond.miscalibration(TOP, HISTORIES, shares)
    assert found == pytest.approx(expected)
    assert (found >= -1e-12).all()
    assert beyond.miscalibration(TOP[:1], [TOP[0]], shares) == pytest.approx([0.0])
    assert beyond.miscalibration(TOP, HISTORIES, beyond.category_shares([None] * NUM_ITEMS)).tolist() == [0.0] * USERS


def test_overlaps() -> None:
    assert beyond.overlap(np.array([[1, 2, 3, 4]]), np.array([[4, 3, 9, 8]])).tolist() == [0.5]
    p, expected = 0.9, []
    for one, other in zip(TOP, OTHER, strict=True):
        agreement = [len(set(one[:d]) & set(other[:d])) / d for d in range(1, K + 1)]
        expected.append(agreement[-1] * p**K + (1 - p) / p * sum(a * p**d for d, a in enumerate(agreement, 1)))
    assert beyond.rank_biased_overlap(TOP, OTHER) == pytest.approx(expected)
    assert beyond.rank_biased_overlap(TOP, TOP) == pytest.approx(1.0)
    assert beyond.rank_biased_overlap(TOP, TOP + NUM_ITEMS).tolist() == [0.0] * USERS
    swapped_last, swapped_first = TOP[:, [0, 1, 2, 3, 5, 4]], TOP[:, [1, 0, 2, 3, 4, 5]]
    assert (beyond.rank_biased_overlap(TOP, swapped_last) > beyond.rank_biased_overlap(TOP, swapped_first)).all()


def test_kendall_tau_agrees_with_scipy() -> None:
    other = OTHER.copy()
    for row, top in zip(other, TOP, strict=True):  # some items in common, some not, at other places
        row[: K // 2 + 1] = RNG.permutation(top)[: K // 2 + 1]
        row[K // 2 + 1 :] = NUM_ITEMS + 1 + np.arange(K - K // 2 - 1)
    expected = []
    for one, two in zip(TOP, other, strict=True):
        common = [item for item in one if item in two]
        expected.append(kendalltau([list(one).index(i) for i in common], [list(two).index(i) for i in common]).statistic)
    assert beyond.kendall_tau(TOP, other) == pytest.approx(expected)
    assert beyond.kendall_tau(TOP, TOP).tolist() == [1.0] * USERS
    assert beyond.kendall_tau(TOP, TOP[:, ::-1]).tolist() == [-1.0] * USERS
    assert np.isnan(beyond.kendall_tau(TOP, TOP + NUM_ITEMS)).all()


def sequences_of(*histories: list[int], num_items: int = 20) -> Sequences:
    offsets = np.cumsum([0, *map(len, histories)])
    ids = [f"i{n}" for n in range(1, num_items + 1)]
    return Sequences([f"u{n}" for n in range(len(histories))], ids, offsets, np.concatenate(histories))


def test_slices_by_hand() -> None:
    popular = [[1, 2, 3, 4, 19 - n % 2, 1 + n % 4] for n in range(8)]
    sequences = sequences_of([*range(1, 23)], [5, 6, 20], *popular, num_items=22)
    found = {name: member_U.tolist() for name, member_U in slices(sequences).items()}
    # Trained on most: items 1 to 4 (of 22: the head are 4); test targets: 22, 20, then 1 to 4.
    assert found["head items"] == [False, False] + [True] * 8
    assert found["tail items"] == [True, True] + [False] * 8
    assert found["cold items"] == [True, False] + [False] * 8
    assert found["short histories"] == [False] + [True] * 9
    assert found["long histories"] == [True] + [False] * 9
    assert "long histories" not in slices(sequences_of([1, 2, 3]))
    assert "head items" not in slices(sequences, "validation")  # their targets: 21, 6, 19 and 18


def test_drift_names_the_slice_that_lost() -> None:
    """Lists that lose only where the target is a tail item."""
    histories = [[1, 2, 3, 4, 5, 1 + n % 4 if n % 2 else 10 + n % 10] for n in range(80)]
    sequences = sequences_of(*histories)
    targets = sequences.targets(sequences.evaluated_users, "test")
    lists = np.stack([[target, *[i for i in range(1, 21) if i != target]] for target in targets])
    worse = lists.copy()
    worse[::2, [0, 5]] = worse[::2, [5, 0]]
    judge = Judge.of(sequences, pl.DataFrame({"item_id": sequences.item_ids}), np.ones((21, 2)))
    ranks = {name: target_ranks(top, targets)[None] for name, top in (("before", lists), ("after", worse))}
    found = judge.drift(worse[None], ranks["after"], lists[None], ranks["before"])
    assert found["overlap"] == 1.0
    assert 0.8 < found["rank_biased_overlap"] < 1
    assert found["kendall_tau"] == pytest.approx(1 - 18 / 190 / 2)  # 1 + 2 * 4 of 190 pairs, in half of all
    changed = {name: own["difference"] for name, own in found["beyond_accuracy"].items()}
    assert changed == pytest.approx(dict.fromkeys(changed, 0.0))  # the same ten items in another order
    assert found["beyond_accuracy"]["novelty_bits"]["ci95"] == pytest.approx([0.0, 0.0])
    assert found["beyond_accuracy"]["coverage"]["ci95"] is None
    tail = found["ndcg_at_10"]["tail items"]
    assert tail["ci95_of_family"] == pytest.approx(tail["ci95"])  # all lose alike
    mixed = found["ndcg_at_10"]["short histories"]
    assert mixed["ci95_of_family"][0] < mixed["ci95"][0] < mixed["ci95"][1] < mixed["ci95_of_family"][1] < 0
    twice = judge.drift(np.stack([worse, lists]), np.repeat(ranks["after"], 2, axis=0), lists[None], ranks["before"])
    assert twice == found  # the seeds that both have
    assert found["ndcg_at_10"]["head items"]["relative"] == pytest.approx(0.0)
    assert found["ndcg_at_10"]["tail items"]["relative"] == pytest.approx(1 / math.log2(7) - 1)
    assert found["ndcg_at_10"][ALL]["relative"] == pytest.approx((1 / math.log2(7) - 1) / 2)
    by_slice = judge.by_slice(ranks["after"])
    assert by_slice["tail items"]["users"] == 40
    assert by_slice["head items"]["ndcg_at_10"] == 1.0
    assert judge.beyond_accuracy(lists[None])["coverage"] == 0.7  # at 10: items 1 to 10, 12, 14, 16 and 18


def test_accuracy_agrees_with_trec_eval() -> None:
    rng = np.random.default_rng(1)
    check_by_oracle(np.stack([rng.permutation(50)[:20] + 1 for _ in range(200)]), rng.integers(1, 51, 200))


@pytest.mark.network
def test_accuracy_on_real_data_agrees_with_trec_eval(tmp_path: Path) -> None:
    pipeline = Pipeline(load_recipe(Recipe, Path("recipes/ml-100k.toml")), tmp_path)
    users = pipeline.sequences.evaluated_users
    histories = [pipeline.sequences.history(user, "test") for user in users]
    top = recommend_all(load_baseline(pipeline.baseline("item-knn")), histories, 20)
    check_by_oracle(top, pipeline.sequences.targets(users, "test"))


def check_by_oracle(top: np.ndarray, target: np.ndarray) -> None:
    """An independent oracle: ir_measures over pytrec_eval."""
    ir = pytest.importorskip("ir_measures")
    qrels = [ir.Qrel(str(u), str(t), 1) for u, t in enumerate(target)]
    run = [ir.ScoredDoc(str(u), str(item), 20.0 - place) for u, own in enumerate(top) for place, item in enumerate(own)]
    found = ir.calc_aggregate([ir.nDCG @ 10, ir.Success @ 10, ir.RR @ 10], qrels, run)
    figures = accuracy_figures(target_ranks(top, target)[None])
    assert figures["ndcg_at_10"] == pytest.approx(found[ir.nDCG @ 10])
    assert figures["hr_at_10"] == pytest.approx(found[ir.Success @ 10])
    assert figures["mrr_at_10"] == pytest.approx(found[ir.RR @ 10])
