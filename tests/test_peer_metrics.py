"""Metrics against RecTools' and rbo's, on random lists and on item-kNN's of ml-100k: `make test-peers`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from foundation.recipe import load_recipe
from recdistill.pipeline import Pipeline
from recdistill.recipe import Recipe
from recommender import beyond
from recommender.baselines import load_baseline
from recommender.evaluate import recommend_all, target_ranks
from recommender.metrics import hit_rate, ndcg, reciprocal_rank

pytestmark = pytest.mark.peers
K = 10


@dataclass
class Case:
    top_UK: np.ndarray
    other_UK: np.ndarray
    target_U: np.ndarray
    histories: list[np.ndarray]
    num_items: int

    @property
    def count_I(self) -> np.ndarray:
        return np.bincount(np.concatenate(self.histories), minlength=self.num_items + 1)


@pytest.fixture(scope="module", params=["random", "ml-100k"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    rng = np.random.default_rng(0)
    if request.param == "random":
        histories = [rng.permutation(80)[: rng.integers(1, 30)] + 1 for _ in range(60)]  # 20 items nobody had
        top_UK, other_UK = (np.stack([rng.permutation(100)[:K] + 1 for _ in histories]) for _ in range(2))
        return Case(top_UK, other_UK, rng.integers(1, 101, 60), histories, 100)
    pipeline = Pipeline(load_recipe(Recipe, Path("recipes/ml-100k.toml")), tmp_path_factory.mktemp("runs"))
    sequences = pipeline.sequences
    users = sequences.evaluated_users
    histories = [sequences.history(user, "test") for user in users]
    baselines = [load_baseline(pipeline.baseline(name)) for name in ("item-knn", "popularity")]
    top_UK, other_UK = (recommend_all(baseline, histories, K) for baseline in baselines)
    return Case(top_UK, other_UK, sequences.targets(users, "test"), histories, sequences.num_items)


def test_they_agree_with_rectools(case: Case) -> None:
    import pandas as pd
    from rectools import metrics
    from scipy.spatial.distance import cosine

    vector_IZ = np.random.default_rng(1).normal(size=(case.num_items + 1, 5))

    class Cosine(metrics.PairwiseDistanceCalculator):
        def _get_distances_for_item_pairs(self, items_0: np.ndarray, items_1: np.ndarray) -> np.ndarray:
            return np.array([cosine(vector_IZ[a], vector_IZ[b]) for a, b in zip(items_0, items_1, strict=True)])

    def table(lists: list[np.ndarray]) -> pd.DataFrame:
        rows = [(user, item, place) for user, own in enumerate(lists) for place, item in enumerate(own, 1)]
        return pd.DataFrame(rows, columns=["user_id", "item_id", "rank"])

    theirs = metrics.calc_metrics(
        {
            "hit": metrics.HitRate(K),
            "ndcg": metrics.NDCG(K, divide_by_achievable=True),
            "mrr": metrics.MRR(K),
            "novelty": metrics.MeanInvUserFreq(K),
            "diversity": metrics.IntraListDiversity(K, Cosine()),
            "coverage": metrics.CatalogCoverage(K, normalize=True),
            "popularity": metrics.AvgRecPopularity(K),
            "overlap": metrics.Intersection(K),
        },
        reco=table(list(case.top_UK)),
        interactions=pd.DataFrame({"user_id": range(len(case.target_U)), "item_id": case.target_U}),
        prev_interactions=table(case.histories)[["user_id", "item_id"]],
        catalog=range(1, case.num_items + 1),
        ref_reco={"other": table(list(case.other_UK))},
    )
    rank_U = target_ranks(case.top_UK, case.target_U)
    ours = {
        "hit": hit_rate(rank_U, K),
        "ndcg": ndcg(rank_U, K),
        "mrr": reciprocal_rank(rank_U, K),
        "novelty": beyond.novelty(case.top_UK, case.count_I, len(case.histories)),
        "diversity": beyond.intra_list_diversity(case.top_UK, vector_IZ),
        "coverage": beyond.coverage(case.top_UK, case.num_items),
        "overlap_other": beyond.overlap(case.top_UK, case.other_UK),
    }
    for name, value in ours.items():
        assert np.mean(value) == pytest.approx(theirs[name]), name
    own = np.mean([case.count_I[history].mean() for history in case.histories])
    lift = beyond.popularity_lift(case.top_UK, case.histories, case.count_I)
    assert lift == pytest.approx(theirs["popularity"] / own - 1)


def test_rank_biased_overlap_agrees_with_rbo(case: Case) -> None:
    from rbo import RankingSimilarity

    pairs = zip(case.top_UK.tolist(), case.other_UK.tolist(), strict=True)
    theirs = [RankingSimilarity(one, other).rbo_ext(p=0.9) for one, other in pairs]
    assert beyond.rank_biased_overlap(case.top_UK, case.other_UK) == pytest.approx(theirs)
