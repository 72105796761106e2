"""The model repository for Triton: accepted by Triton's own messages, true to the graph, and served over its protocol."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("tritonclient", reason="the extra triton is not installed")

from benchmark.config import BenchmarkSection
from benchmark.runner import run_process
from benchmark.worker import Job
from export.config import ExportSection, TritonSection
from export.triton import TritonError, build_repository, check_model, model_config, signature_of
from foundation.artifact import Artifact, Unavailable, make
from recommender.runtimes.base import GRAPH
from recommender.runtimes.onnxruntime import OnnxRecommender
from recommender.runtimes.triton import TritonRecommender
from tests.constructed import make_served_graph
from tests.triton_server import Server

NUM_ITEMS, K = 90, 12
SECTION = TritonSection(name="shop", max_batch_size=8, version=3)


@pytest.fixture(scope="module", params=[[], ["exclude", "query"]], ids=["plain", "asked"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_served_graph(tmp_path_factory.mktemp("onnx") / "g", NUM_ITEMS, K, request.param)


@pytest.fixture
def repository(exported: Artifact, tmp_path: Path) -> Artifact:
    return make(
        tmp_path / "repository",
        "triton",
        recipe={},
        inputs={"onnx": exported},
        build=lambda draft: build_repository(exported, None, SECTION, 10, draft),
    )


def test_the_repository_is_as_triton_wants_it(repository: Artifact, exported: Artifact) -> None:
    repository.verify()
    assert set(repository.manifest["files"]) == {"shop/config.pbtxt", "shop/item_ids.json", "shop/3/model.onnx"}
    assert repository.file("shop/3/model.onnx").read_bytes() == exported.file(GRAPH).read_bytes()
    text = repository.file("shop/config.pbtxt").read_text()
    for expected in (
        "max_batch_size: 8",
        "max_queue_size: 1024",
        "default_timeout_microseconds: 100000",
        "instance_group",
        exported.digest,
    ):
        assert expected in text
    check_model(repository.path / "shop", signature_of(onnx.load(exported.file(GRAPH))))


@pytest.mark.parametrize(
    ("pattern", "replacement", "said"),
    [
        ("max_batch_size", "max_batchsize", "not a configuration of Triton"),
        ("TYPE_INT64", "TYPE_INT65", "not a configuration of Triton"),
        ("TYPE_INT64", "TYPE_INT32", "the graph's"),
        (r'name: "history"', 'name: "histories"', "the graph's"),
        ("dims: 12", "dims: 13", "the graph's"),
        (r'name: "shop"', 'name: "store"', "its folder says 'shop'"),
        ("model.onnx", "graph.onnx", "has not"),
        (r'key: "history"', 'key: "past"', "does not fill"),
        ("batch_size: 8\n  inputs", "batch_size: 9\n  inputs", "larger than max_batch_size"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    repository: Artifact, exported: Artifact, pattern: str, replacement: str, said: str
) -> None:
    path = repository.path / "shop" / "config.pbtxt"
    text = path.read_text()
    changed = re.sub(pattern, replacement, text)
    assert changed != text
    path.write_text(changed)
    with pytest.raises(TritonError, match=said):
        check_model(path.parent, signature_of(onnx.load(exported.file(GRAPH))))


def test_a_fixed_batch_is_refused(exported: Artifact) -> None:
    model = onnx.load(exported.file(GRAPH))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    with pytest.raises(TritonError, match="fixed batch of 4"):
        signature_of(model)


def test_an_engine_is_served_by_triton_s_own_backend(exported: Artifact) -> None:
    signature = signature_of(onnx.load(exported.file(GRAPH)))
    text = model_config("shop-fp16", "tensorrt", "fp16.engine", signature, SECTION, 10, "0" * 64)
    assert 'backend: "tensorrt"' in text and "KIND_GPU" in text and 'default_model_filename: "fp16.engine"' in text


def test_the_client_answers_as_the_graph_does(repository: Artifact, exported: Artifact) -> None:
    """Over the real protocol; batches larger than the server takes are cut."""
    graph = OnnxRecommender(exported.file(GRAPH))
    history_BL = np.random.default_rng(0).integers(0, NUM_ITEMS + 1, (19, 7))
    with Server(repository.path) as server:
        client = TritonRecommender(server.url, "shop", repository.path / "shop")
        assert (client.k, set(client.inputs)) == (K, set(graph.inputs))
        for ours, expected in zip(client.recommend(history_BL, 5), graph.recommend(history_BL, 5), strict=True):
            assert (ours == expected).all()
        assert [shape[0] for shape in server.requests] == [8, 8, 3]
        if graph.inputs:
            asked = {"exclude": np.array([[1, 2, 3]]), "query": np.ones((1, 6))}
            assert (
                client.recommend(history_BL[:1], 5, **asked)[0].tolist()
                == graph.recommend(history_BL[:1], 5, **asked)[0].tolist()
            )


def test_the_client_speaks_ids(repository: Artifact, exported: Artifact) -> None:
    graph = OnnxRecommender(exported.file(GRAPH))
    with Server(repository.path) as server:
        client = TritonRecommender(server.url, "shop", repository.path / "shop")
        found = client.recommend_ids([["sku-3", "nobody's", "sku-7"], []], 4)
        assert {shape[1] for shape in server.requests} == {50}
    index_BK, score_BK = graph.recommend(np.array([[3, 7], [0, 0]]), 4)
    for row, index_K, score_K in zip(found, index_BK, score_BK, strict=True):
        assert [item_id for item_id, _ in row] == [f"sku-{index}" for index in index_K]
        assert np.allclose([score for _, score in row], score_K, atol=1e-5)


def test_what_is_not_served_is_named(repository: Artifact) -> None:
    with Server(repository.path) as server:
        with pytest.raises(Unavailable, match="no model 'other' at localhost"):
            TritonRecommender(server.url, "other", repository.path / "shop")
        url = server.url
    with pytest.raises(Unavailable, match=f"no model 'shop' at {url}"):
        TritonRecommender(url, "shop", repository.path / "shop", timeout_s=2.0)


def test_the_benchmark_measures_a_server(repository: Artifact, exported: Artifact, tmp_path: Path) -> None:
    """A process of the benchmark sends its load there; a server that is gone becomes a result that says so."""
    section = BenchmarkSection(k=10, batch_size=8, single_s=0.05, offline_s=0.05, warmup_s=0.0)
    np.save(tmp_path / "histories.npy", np.random.default_rng(0).integers(1, NUM_ITEMS + 1, (20, 10)))
    with Server(repository.path) as server:
        job = Job(
            str(exported.path),
            exported.digest,
            section.model_dump(),
            histories=str(tmp_path / "histories.npy"),
            endpoint=f"{server.url}/shop",
        )
        result = run_process(job, section, tmp_path)
        assert "error" not in result and result["runtime"] == "triton remote" and result["throughput_per_s"] > 0
        assert {1, 8} <= {shape[0] for shape in server.requests}
    assert "no model 'shop'" in run_process(job, section, tmp_path)["error"]


def test_a_batch_no_engine_takes_is_refused_with_the_recipe() -> None:
    with pytest.raises(ValueError, match=r"more than export\.tensorrt\.profiles cover"):
        ExportSection(triton=TritonSection(max_batch_size=512))


@pytest.mark.gpu
@pytest.mark.skipif("TRITON_URL" not in os.environ, reason="tools/triton.sh REPOSITORY serves one; TRITON_URL=localhost:8001")
def test_a_real_server_answers() -> None:
    """Of the repository in TRITON_REPOSITORY, made by `make export-triton`."""
    repository = Path(os.environ["TRITON_REPOSITORY"])
    client = TritonRecommender(os.environ["TRITON_URL"], "recommender", repository / "recommender")
    graph = OnnxRecommender(next((repository / "recommender").glob("*/model.onnx")))
    history_BL = np.random.default_rng(0).integers(1, 50, (100, 50))
    assert (client.recommend(history_BL, 10)[0] == graph.recommend(history_BL, 10)[0]).mean() > 0.99
