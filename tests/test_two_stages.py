"""Scoring in two stages: the lists of one stage where the table is of low rank, refused where the first stage loses items."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError

from export.append import append_rows, prove
from export.config import ExportSection, TensorRTSection
from export.graph import ServingGraph
from export.onnx_graph import build_onnx, write_graph
from export.parity import ParityError
from export.tensorrt_engine import build_engine
from foundation.artifact import Artifact, make
from quantize.config import QuantizeSection
from quantize.graph import build_quantized_graph
from recommender.config import StudentSection
from recommender.runtimes import open_graph
from recommender.runtimes.base import GRAPH
from recommender.runtimes.onnxruntime import OnnxRecommender
from recommender.split import Sequences
from recommender.student import Student, StudentRecommender

K, RANK, SIZE = 10, 6, 24
TWO = {"first_stage_dims": 8, "first_stage_items": 16, "first_layer_table": True}
ONE = ExportSection(k=K, parity_histories=80)


def drawn(num_items: int, noise: float = 0.02) -> Student:
    """A student whose item table has rank 6, but for some noise."""
    torch.manual_seed(0)
    student = Student(StudentSection(hidden_size=SIZE, num_layers=2, max_length=12), num_items, None).eval()
    with torch.no_grad():
        low = torch.randn(num_items + 1, RANK) @ torch.randn(RANK, SIZE)
        student.items.id_ID.copy_(low + noise * torch.randn(num_items + 1, SIZE))
    return student


def export(student: Student, sequences: Sequences, out: Path, **keys: object) -> Artifact:
    section = ExportSection.model_validate(ONE.model_dump() | TWO | keys)
    build = lambda draft: build_onnx(student, sequences, section, "", draft)  # noqa: E731
    return make(out, "onnx", recipe={}, inputs={}, build=build)


@pytest.fixture(scope="module")
def graph(sequences: Sequences, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export(drawn(sequences.num_items), sequences, tmp_path_factory.mktemp("two") / "g")


@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime-plain", "openvino-fp32"])
@pytest.mark.parametrize("inputs", [[], ["exclude", "candidates"]], ids=["plain", "asked"])
def test_two_stages_give_the_lists_of_one(runtime: str, inputs: list[str], tmp_path: Path) -> None:
    if runtime.startswith("openvino"):
        pytest.importorskip("openvino")
    student, rng = drawn(300), np.random.default_rng(0)
    write_graph(ServingGraph(student, K, first_stage=(8, 40)), inputs, 21, "", tmp_path / GRAPH)
    (tmp_path / "item_ids.json").write_text(json.dumps([str(number) for number in range(300)]))
    graph, reference = open_graph(runtime, tmp_path / GRAPH, 1), StudentRecommender(student)
    for shape in ((1, 1), (7, 12), (3, 40)):
        history_BL = rng.integers(0, 301, shape)
        expected, found = reference.recommend(history_BL, K), graph.recommend(history_BL, K)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_allclose(found[1], expected[1], atol=1e-3)
    if inputs:
        first = reference.recommend(np.array([[5]]), 3)[0]
        assert not set(first[0]) & set(graph.recommend(np.array([[5]]), K, exclude=first)[0][0])
        only = graph.recommend(np.array([[5]]), K, candidates=np.array([[7, 9, 5]]))[0][0]
        assert sorted(only.tolist()) == [0] * 8 + [7, 9]


def test_where_few_items_are_left(tmp_path: Path) -> None:
    """What was seen does not come back, though the first stage has to fill its places with something."""
    write_graph(ServingGraph(drawn(60), K, first_stage=(8, 40)), [], 21, "", tmp_path / GRAPH)
    history_BL = np.arange(1, 57)[None]
    index_BK, score_BK = OnnxRecommender(tmp_path / GRAPH, 1).recommend(history_BL, K)
    assert sorted(index_BK[0].tolist()) == [0] * 6 + [57, 58, 59, 60]
    assert (score_BK[0, 4:] == -np.inf).all() and (score_BK[0, :4] > -np.inf).all()


def test_an_export_whose_first_stage_loses_items_is_not_kept(sequences: Sequences, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="agree on only"):
        export(drawn(sequences.num_items, noise=3.0), sequences, tmp_path / "g", first_stage_dims=2, first_stage_items=12)
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize(
    ("keys", "said"), [({"first_stage_dims": SIZE}, "must be less than the 24"), ({"first_stage_items": 3000}, "saves nothing")]
)
def test_stages_that_save_nothing_are_refused(sequences: Sequences, tmp_path: Path, keys: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        export(drawn(sequences.num_items), sequences, tmp_path / "g", **keys)


def test_a_first_stage_smaller_than_the_lists_is_a_contradiction() -> None:
    with pytest.raises(ValidationError, match=r"export\.first_stage_items = 9 is less than export\.k = 10"):
        ExportSection(k=10, first_stage_dims=4, first_stage_items=9)


def test_new_items_go_into_both_stages(graph: Artifact, sequences: Sequences, tmp_path: Path) -> None:
    rows_ND = np.random.default_rng(0).normal(size=(5, RANK)) @ np.random.default_rng(1).normal(size=(RANK, SIZE))
    rows_ND[:, :] += graph_table(graph)[1:6]  # near what is there, so that the components hold them
    student = drawn(sequences.num_items)
    longer = append_rows(onnx.load(graph.file(GRAPH)), rows_ND.astype(np.float32), student)
    (tmp_path / "item_ids.json").write_bytes(graph.file("item_ids.json").read_bytes())
    onnx.save(longer, tmp_path / GRAPH)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in longer.graph.initializer}
    np.testing.assert_allclose(constants["first_RI"], (constants["table_ID"] @ constants["projection_DR"]).T, atol=1e-4)
    with torch.no_grad():
        layer_I3 = student.first_layer_table(torch.from_numpy(constants["table_ID"].copy())).numpy()
    np.testing.assert_allclose(constants["layer_I3"], layer_I3, atol=1e-4)
    assert prove(graph.file(GRAPH), tmp_path / GRAPH, sequences.num_items, 5, sequences)["max_score_difference"] < 1e-4


def test_items_are_appended_where_the_first_stage_is_not_exact(sequences: Sequences, tmp_path: Path) -> None:
    """The proof compares what both graphs score, not which items their first stages happen to lose."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    old, new = (tmp_path / name / GRAPH for name in ("old", "new"))
    student = drawn(sequences.num_items, noise=2.0)
    write_graph(ServingGraph(student, K, first_stage=(6, 14)), [], 21, "", old)
    lists = OnnxRecommender(old).recommend(np.arange(1, 41)[:, None], K)[0]
    exact = StudentRecommender(student).recommend(np.arange(1, 41)[:, None], K)[0]
    assert (lists != exact).any()
    rows_ND = np.random.default_rng(0).normal(size=(3, SIZE)).astype(np.float32)
    onnx.save(append_rows(onnx.load(old), rows_ND, student), new)
    assert prove(old, new, sequences.num_items, 3, sequences)["max_score_difference"] < 1e-4


def graph_table(graph: Artifact) -> np.ndarray:
    model = onnx.load(graph.file(GRAPH))
    return next(onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == "table_ID")


def test_what_the_last_layer_multiplies_by_is_quantized_at_any_width(tmp_path: Path) -> None:
    """The exporter folds small constants only: wider matrices have to be constants by themselves."""
    torch.manual_seed(0)
    student = Student(StudentSection(hidden_size=128, num_layers=2, max_length=12), 300, None).eval()
    write_graph(ServingGraph(student, K), [], 21, "", tmp_path / GRAPH)
    model = onnx.load(tmp_path / GRAPH)
    constants = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    shapes = [constants[node.input[1]] for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in constants]
    assert shapes.count([64, 128]) == 2 and shapes.count([128, 64]) == 2


@pytest.mark.parametrize("method", ["int8", "int8-qdq", "int4-qdq"])
def test_both_stages_are_quantized(graph: Artifact, sequences: Sequences, tmp_path: Path, method: str) -> None:
    build = lambda draft: build_quantized_graph(method, graph, sequences, QuantizeSection(), draft)  # noqa: E731
    made = make(tmp_path / "q", f"onnx-{method}", recipe={}, inputs={}, build=build)
    assert made.metrics["graph_bytes"] < made.metrics["float_graph_bytes"]
    history_BL = np.random.default_rng(0).integers(1, sequences.num_items + 1, (50, 12))
    lists = [OnnxRecommender(a.file(GRAPH)).recommend(history_BL, K)[0] for a in (graph, made)]
    common = np.mean([len(set(one) & set(other)) / K for one, other in zip(*lists, strict=True)])
    assert common > (0.6 if method == "int4-qdq" else 0.9)


def test_an_engine_of_both_stages_is_built(graph: Artifact) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is published for Linux on x86-64 only")
    section = TensorRTSection(profiles=[[1, 64]], max_length=64)
    plan, summary = build_engine(trt, graph.file(GRAPH), section, ["sm89"])
    assert len(plan) > 1000 and summary["layers"]["TOPK"] == 2
