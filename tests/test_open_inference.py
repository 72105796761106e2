"""A server of the Open Inference Protocol over HTTP, measured and asked as a graph in this process is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmark.config import BenchmarkSection
from benchmark.runner import run_process
from benchmark.worker import Job
from foundation.artifact import Artifact, Unavailable
from recommender.ranking import top_k
from recommender.runtimes.base import GRAPH
from recommender.runtimes.onnxruntime import OnnxRecommender
from recommender.runtimes.open_inference import OpenInferenceRecommender
from tests.constructed import make_served_graph
from tests.open_inference_server import Server

NUM_ITEMS, K = 90, 12


@pytest.fixture(scope="module", params=[[], ["exclude", "query"]], ids=["plain", "asked"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_served_graph(tmp_path_factory.mktemp("onnx") / "g", NUM_ITEMS, K, request.param)


def test_it_answers_as_the_graph_does(exported: Artifact) -> None:
    graph = OnnxRecommender(exported.file(GRAPH))
    history_BL = np.random.default_rng(0).integers(0, NUM_ITEMS + 1, (19, 7))
    for limit, batches in ((8, [8, 8, 3]), (None, [19])):
        with Server(exported.file(GRAPH), limit) as server:
            client = OpenInferenceRecommender(server.url, "shop", exported.path)
            assert (client.k, client.inputs) == (K, graph.inputs)
            found, expected = client.recommend(history_BL, 5), graph.recommend(history_BL, 5)
            assert (found[0] == expected[0]).all() and found[0].dtype == np.int64
            np.testing.assert_allclose(found[1], expected[1], atol=1e-6)
            assert server.batches == batches
            if graph.inputs:
                asked = {"exclude": np.array([[1, 2, 3]]), "query": np.ones((1, 6))}
                one, other = (side.recommend(history_BL[:1], 5, **asked)[0].tolist() for side in (client, graph))
                assert one == other


def test_where_nothing_is_left_the_score_is_minus_infinity(exported: Artifact) -> None:
    """Which JSON cannot say."""
    history_BL = np.arange(1, NUM_ITEMS - 3)[None]
    expected = top_k(np.zeros((1, NUM_ITEMS + 1), np.float32), history_BL, K)[1]
    with Server(exported.file(GRAPH)) as server:
        index_BK, score_BK = OpenInferenceRecommender(server.url, "shop", exported.path).recommend(history_BL, K)
    assert (np.isinf(score_BK) == np.isinf(expected)).all() and (index_BK[np.isinf(score_BK)] == 0).all()
    assert score_BK.dtype == np.float32 and not np.isnan(score_BK).any()


def test_it_speaks_ids_over_a_connection_that_the_server_closed(exported: Artifact) -> None:
    graph = OnnxRecommender(exported.file(GRAPH))
    with Server(exported.file(GRAPH)) as server:
        client = OpenInferenceRecommender(server.url, "shop", exported.path)
        server.impatient = True
        for _ in range(3):
            (found, nothing_known) = client.recommend_ids([["sku-3", "nobody's", "sku-7"], []], 4)
    index_BK, _ = graph.recommend(np.array([[3, 7], [0, 0]]), 4)
    assert [item_id for item_id, _ in found] == [f"sku-{index}" for index in index_BK[0]]
    assert [item_id for item_id, _ in nothing_known] == [f"sku-{index}" for index in index_BK[1]]


def test_what_is_not_served_is_named(exported: Artifact) -> None:
    with Server(exported.file(GRAPH)) as server:
        with pytest.raises(Unavailable, match=r"no model 'none' at http://localhost:\d+: .* 404 Not Found: .*unknown model"):
            OpenInferenceRecommender(server.url, "none", exported.path)
        with pytest.raises(Unavailable, match=r"'other' at .* is no recommender of ours: it has no 'history'"):
            OpenInferenceRecommender(server.url, "other", exported.path)
        url = server.url
    with pytest.raises(Unavailable, match="no model 'shop' at http://localhost"):
        OpenInferenceRecommender(url, "shop", exported.path)


def test_the_benchmark_measures_it(exported: Artifact, tmp_path: Path) -> None:
    section = BenchmarkSection(
        k=10, batch_size=8, single_s=0.05, offline_s=0.05, warmup_s=0.0, endpoint="http://localhost:8000"
    )
    np.save(tmp_path / "histories.npy", np.random.default_rng(0).integers(1, NUM_ITEMS + 1, (20, 10)))
    with Server(exported.file(GRAPH)) as server:
        what = {"histories": str(tmp_path / "histories.npy"), "endpoint": f"{server.url}/shop"}
        result = run_process(Job(str(exported.path), exported.digest, section.model_dump(), **what), section, tmp_path)
        assert "error" not in result, result
        assert result["runtime"] == "http remote" and result["throughput_per_s"] > 0 and result["peak_rss_bytes"] is None
        assert {1, 8} <= set(server.batches)
