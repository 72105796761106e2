"""New items in an exported graph: what they get, what stays as it was, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest
import torch

from distill.config import TextSection
from distill.text import build_text, encode_new, load_text
from export.append import AppendError, append_rows, build_appended, build_in_precision, prove
from export.config import ExportSection
from export.onnx_graph import build_onnx
from export.parity import ParityError
from foundation.artifact import Artifact, Draft, make
from quantize.config import QuantizeSection
from quantize.graph import build_quantized_graph
from recommender.config import StudentSection
from recommender.data import DataError, load_dataset
from recommender.runtimes.base import GRAPH, ITEM_IDS
from recommender.runtimes.onnxruntime import OnnxRecommender
from recommender.split import Sequences
from recommender.student import Student, load_student, save_student

K, DIMS = 10, 16
SECTION = ExportSection(k=K, parity_histories=60)


@pytest.fixture(scope="module")
def text(dataset: Artifact, tiny_llm: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    section = TextSection(student_dims=DIMS, whiten=True)
    items = load_dataset(dataset).items
    out = tmp_path_factory.mktemp("text") / "text"
    recipe = {"text": section.model_dump(mode="json")}
    return make(out, "item-text", recipe=recipe, inputs={}, build=lambda draft: build_text(tiny_llm, items, section, draft))


@pytest.fixture(scope="module")
def student(text: Artifact, sequences: Sequences, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    section = StudentSection(hidden_size=32, num_layers=1, max_length=12)

    def build(draft: Draft) -> None:
        torch.manual_seed(0)
        drawn = Student(section, sequences.num_items, torch.from_numpy(load_text(text)[1]))
        with torch.no_grad():
            for parameter in drawn.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        save_student(drawn, draft)

    recipe = {"student": section.model_dump(mode="json")}
    return make(tmp_path_factory.mktemp("student") / "s", "student", recipe=recipe, inputs={}, build=build)


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def graph(
    request: pytest.FixtureRequest, student: Artifact, sequences: Sequences, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    def build(draft: Draft) -> None:
        build_onnx(load_student(student), sequences, SECTION, student.digest, draft, request.param)

    return make(tmp_path_factory.mktemp("graph") / "g", "onnx", recipe={}, inputs={}, build=build)


def new_items(first: int, count: int) -> pl.DataFrame:
    rows = [{"item_id": f"new{i}", "title": f"thing {i}", "categories": ["group 1"], "year": 1995} for i in range(count)]
    return pl.DataFrame(rows).with_columns(pl.col("item_id") + f"-{first}")


@pytest.fixture
def appended(graph: Artifact, student: Artifact, text: Artifact, tiny_llm: Artifact, sequences: Sequences, tmp_path: Path):
    def append(raw: pl.DataFrame, name: str = "out", base: Artifact = graph, of: Artifact = student) -> Artifact:
        def build(draft: Draft) -> None:
            build_appended(raw, base, of, text, tiny_llm, sequences, 0.5, draft)

        return make(tmp_path / name, "onnx", recipe={}, inputs={}, build=build)

    return append


def test_new_items_are_ranked_by_their_text(appended, graph: Artifact, student: Artifact, text, tiny_llm) -> None:
    """Their scores are those of eta W z, and everything of the old items stays; a second time adds to the first."""
    made = appended(new_items(0, 5))
    again = appended(new_items(1, 3), "again", base=made)
    old_ids = json.loads(graph.file(ITEM_IDS).read_bytes())
    assert json.loads(again.file(ITEM_IDS).read_bytes()) == [
        *old_ids, "new0-0", "new1-0", "new2-0", "new3-0", "new4-0", "new0-1", "new1-1", "new2-1",
    ]  # fmt: skip
    assert again.metrics["appended"]["of"] == len(old_ids) + 8
    model = load_student(student)
    new_ND = model.items.of_text(torch.from_numpy(encode_new(text, tiny_llm, new_items(0, 5)))).detach()
    table = next(t for t in onnx.load(made.file(GRAPH)).graph.initializer if t.name == "table_ID")
    table_ID = onnx.numpy_helper.to_array(table)
    assert np.allclose(table_ID[-5:], new_ND, atol=1e-3 if table_ID.dtype == np.float16 else 1e-6)
    history_BL = np.array([[3, 1, 4]])
    before, after = (
        dict(zip(*(part[0] for part in OnnxRecommender(a.file(GRAPH)).recommend(history_BL, K)), strict=True))
        for a in (graph, made)
    )
    assert [i for i in after if i <= len(old_ids)] == list(before)[: sum(i <= len(old_ids) for i in after)]
    seen = OnnxRecommender(made.file(GRAPH)).recommend(np.array([[len(old_ids) + 1, len(old_ids) + 2]]), K)
    assert not {len(old_ids) + 1, len(old_ids) + 2} & set(seen[0][0])  # a new item in a history is known, and seen


def test_a_new_item_like_an_old_one_is_scored_as_its_text_is(text: Artifact, tiny_llm: Artifact, dataset: Artifact) -> None:
    items = load_dataset(dataset).items
    assert np.allclose(encode_new(text, tiny_llm, items.head(7)), load_text(text)[1][1:8], atol=1e-5)


def test_what_cannot_be_appended_is_refused(appended, graph: Artifact, student: Artifact, dataset: Artifact, tmp_path) -> None:
    with pytest.raises(DataError, match="in the graph already"):
        appended(load_dataset(dataset).items.head(3))
    with pytest.raises(DataError, match="malformed"):
        appended(pl.DataFrame({"item_id": ["", " ", "a"], "title": ["x", "y", "z"]}))
    with pytest.raises(DataError, match=r"no column 'title'.*did you mean 'titel'"):
        appended(pl.DataFrame({"item_id": ["a"], "titel": ["x"]}))
    with pytest.raises(AppendError, match="exported from another student"):
        appended(new_items(0, 1), of=graph)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("graph", ["fp32"], indirect=True)
def test_a_quantized_graph_is_quantized_again_instead(graph: Artifact, sequences: Sequences, tmp_path: Path, appended) -> None:
    def build(base: Artifact):
        return lambda draft: build_quantized_graph("int8", base, sequences, QuantizeSection(), draft)

    quantized = make(tmp_path / "q", "onnx-int8", recipe={}, inputs={}, build=build(graph))
    with pytest.raises(AppendError, match="append to the float graph and quantize that again"):
        appended(new_items(0, 1), base=quantized)
    again = make(tmp_path / "q2", "onnx-int8", recipe={}, inputs={}, build=build(appended(new_items(0, 4))))
    assert len(json.loads(again.file(ITEM_IDS).read_bytes())) == sequences.num_items + 4


def spoilt(table_ID: np.ndarray, fault: str) -> np.ndarray:
    if fault == "not ranked":
        return table_ID[:-1]
    rows = np.arange(len(table_ID))
    rows[[7, 8]] = [8, 7] if fault == "order" else [7, 7]
    return table_ID[rows]


@pytest.mark.parametrize("fault", ["an old row", "not ranked", "order"])
def test_the_proof_sees_what_is_wrong(
    graph: Artifact, student: Artifact, sequences: Sequences, tmp_path: Path, fault: str
) -> None:
    rng = np.random.default_rng(0)
    model = append_rows(onnx.load(graph.file(GRAPH)), rng.normal(size=(4, 32)).astype(np.float32), load_student(student))
    for tensor in model.graph.initializer:
        if sequences.num_items + 5 in tensor.dims:  # the table, and its transpose where the exporter has folded that
            table_ID = onnx.numpy_helper.to_array(tensor)
            upright = table_ID.shape[1] == 32
            changed = spoilt(table_ID if upright else table_ID.T, fault)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(changed if upright else changed.T), tensor.name))
    onnx.save(model, tmp_path / GRAPH)
    with pytest.raises(ParityError, match="only 600 of 800" if fault == "not ranked" else "with the new items taken out"):
        prove(graph.file(GRAPH), tmp_path / GRAPH, sequences.num_items, 4, sequences)
    assert not (tmp_path / "whole-ranking.onnx").exists()


def test_a_thousand_items(graph: Artifact, student: Artifact, sequences: Sequences, tmp_path: Path) -> None:
    rows_ND = np.random.default_rng(0).normal(scale=0.05, size=(1000, 32)).astype(np.float32)
    onnx.save(append_rows(onnx.load(graph.file(GRAPH)), rows_ND, load_student(student)), tmp_path / GRAPH)
    found = prove(graph.file(GRAPH), tmp_path / GRAPH, sequences.num_items, 1000, sequences)
    assert found["requests"] == 200 and found["max_score_difference"] <= 1e-5
    assert found["in_some_top_k"] > 10


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_an_appended_graph_in_another_precision(
    student: Artifact, sequences: Sequences, tmp_path: Path, graph: Artifact, appended, precision: str
) -> None:
    """The new items are there in it, and rank as in the graph of float32; a graph of half precision cannot go back."""
    if precision == "bf16":
        pytest.importorskip("openvino", reason="it alone runs bf16 on a CPU")
    made = appended(new_items(0, 5))
    table = next(tensor for tensor in onnx.load(made.file(GRAPH)).graph.initializer if tensor.name == "table_ID")
    build = lambda draft: build_in_precision(precision, made, student, sequences, SECTION, draft)  # noqa: E731
    if table.data_type != onnx.TensorProto.FLOAT:
        with pytest.raises(AppendError, match="append to the graph of fp32"):
            make(tmp_path / "again", f"onnx-{precision}", recipe={}, inputs={}, build=build)
        return
    again = make(tmp_path / "again", f"onnx-{precision}", recipe={}, inputs={}, build=build)
    tables = [tensor for tensor in onnx.load(again.file(GRAPH)).graph.initializer if tensor.name == "table_ID"]
    assert tables[0].dims[0] == table.dims[0] and again.file(ITEM_IDS).read_bytes() == made.file(ITEM_IDS).read_bytes()
    kinds = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
    assert tables[0].data_type == kinds[precision]
    if precision != "bf16":
        history_BL = np.array([[3, 1, len(json.loads(made.file(ITEM_IDS).read_bytes()))]])
        expected, found = (OnnxRecommender(a.file(GRAPH)).recommend(history_BL, K)[1] for a in (made, again))
        assert np.allclose(expected, found, atol=1e-5 if precision == "fp32" else 1e-2)
