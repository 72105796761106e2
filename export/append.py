"""Stage: new items in a graph that is there already, without training or exporting anew.

A new item is e = eta W z of its text (see `recommender/student.py`): rows are added to the graph's item table, ids to its list,
and the result is a new artefact. The table grows: spare rows that wait for items would cost every request their score and their
mask, and would run out; an ONNX graph has no need of them.

Before it is kept the new graph is compared with the old one over the parity requests:

    masked      with the new items taken out, lists are what they were, item by item and score by score
    order       what of the old items is left in the top K stands in its former order
    retrieved   each new item is ranked, with a score, for every history

TensorRT engines are built anew from the new graph in their precisions (`build_in_precision`, or quantized again): refitting one
needs a GPU, and saves nothing that takes long.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import torch
from onnx import numpy_helper

from distill.text import encode_new
from export.config import ExportSection
from export.graph import ServingGraph
from export.onnx_graph import DTYPES, write_graph
from export.parity import Lists, ParityError, Requests, answers, parity_requests
from export.verify import require, verify_graph
from foundation.artifact import Artifact, Draft
from recommender.cleaning import write_items
from recommender.data import DataError
from recommender.runtimes.base import GRAPH, ITEM_IDS, OUTPUTS
from recommender.runtimes.onnxruntime import OnnxRecommender
from recommender.split import Sequences
from recommender.student import Student, load_student

TABLE, ROWS, FIRST, PROJECTION, LAYER = "table_ID", "num_rows", "first_RI", "projection_DR", "layer_I3"
_CLOSE = 1e-5  # of scores; a product of another width may be summed in another order
_PROVEN_REQUESTS = 200
_BATCH = 16  # the same for both graphs: half precision rounds sums of another shape to another neighbour


class AppendError(ValueError):
    """Items that cannot be appended to this graph; the message says why."""


def build_appended(
    raw: pl.DataFrame,
    graph: Artifact,
    student: Artifact,
    text: Artifact,
    llm: Artifact,
    sequences: Sequences,
    max_quarantined_fraction: float,
    draft: Draft,
) -> None:
    """Clean the items, compute their rows, write the graph with them, and prove it."""
    items = write_items(raw, draft, max_quarantined_fraction)
    old = onnx.load(graph.file(GRAPH))
    _check_student(graph, old, student)
    item_ids = _all_ids(graph, items)
    started = time.perf_counter()
    text_NZ = encode_new(text, llm, items)
    encoded = time.perf_counter()
    opened = load_student(student)
    with torch.no_grad():
        rows_ND = opened.items.of_text(torch.from_numpy(text_NZ)).numpy()
    onnx.save(append_rows(old, rows_ND, opened), draft.path / GRAPH)
    (draft.path / ITEM_IDS).write_text(json.dumps(item_ids))
    proof = prove(graph.file(GRAPH), draft.path / GRAPH, len(item_ids) - items.height, items.height, sequences)
    draft.metrics |= {
        "num_parameters": graph.metrics["num_parameters"] + rows_ND.size,
        "opset": graph.metrics["opset"],
        "appended": {
            "items": items.height,
            "of": len(item_ids),
            "encode_s": round(encoded - started, 3),
            "append_s": round(time.perf_counter() - encoded, 3),
            **proof,
        },
    }


def build_in_precision(
    precision: str, appended: Artifact, student: Artifact, sequences: Sequences, section: ExportSection, draft: Draft
) -> None:
    """Write a graph of float32 that was appended to in another precision, and compare the two."""
    path = appended.file(GRAPH)
    model, whole = onnx.load(path), OnnxRecommender(path)
    _check_student(appended, model, student)
    table = next((tensor for tensor in model.graph.initializer if tensor.name == TABLE), None)
    if table is None or table.data_type != onnx.TensorProto.FLOAT:
        raise AppendError(f"{appended.path} has no item table of float32; append to the graph of fp32 (export.dtype)")
    table_ID = torch.from_numpy(numpy_helper.to_array(table).copy())
    graph = ServingGraph(load_student(student), whole.k, DTYPES[precision], table_ID=table_ID, **section.graph_options)
    write_graph(graph, list(whole.inputs), appended.metrics["opset"], student.digest, draft.path / GRAPH)
    shutil.copyfile(appended.file(ITEM_IDS), draft.path / ITEM_IDS)
    requests = parity_requests(sequences, section.parity_histories, whole.k)
    checked = section.model_copy(update={"k": whole.k})
    reference = answers(whole, requests, whole.k)
    require(verify_graph("the graph", draft.path / GRAPH, precision, reference, requests, checked))
    draft.metrics |= {name: appended.metrics[name] for name in ("num_parameters", "opset")}


def append_rows(model: onnx.ModelProto, rows_ND: np.ndarray, student: Student) -> onnx.ModelProto:
    """A copy of `model`, which was made of `student`, whose item table ends in `rows_ND`, in the table's own data type."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    if not {TABLE, ROWS} <= set(constants):
        raise AppendError("this graph has no float item table to lengthen; append to the float graph and quantize that again")
    table_ID = numpy_helper.to_array(constants[TABLE])
    if rows_ND.shape[1] != table_ID.shape[1]:
        raise AppendError(f"the rows have {rows_ND.shape[1]} dimensions, the graph's items {table_ID.shape[1]}")
    longer_ID = np.concatenate([table_ID, rows_ND.astype(table_ID.dtype)])
    longer = {TABLE: longer_ID}
    if FIRST in constants:
        first_RI, projection_DR = (numpy_helper.to_array(constants[name]) for name in (FIRST, PROJECTION))
        first_RN = (rows_ND @ projection_DR.astype(np.float32)).T.astype(first_RI.dtype)
        longer[FIRST] = np.concatenate([first_RI, first_RN], axis=1)
    if LAYER in constants:
        layer_I3 = numpy_helper.to_array(constants[LAYER])
        with torch.no_grad():
            layer_N3 = student.first_layer_table(torch.from_numpy(rows_ND)).numpy()
        longer[LAYER] = np.concatenate([layer_I3, layer_N3.astype(layer_I3.dtype)])
    for name, tensor in constants.items():
        if len(table_ID) not in tensor.dims:
            continue
        if name not in longer and not np.array_equal(numpy_helper.to_array(tensor), table_ID.T):
            raise AppendError(f"{name!r} of this graph has a row for each item as well, which cannot be lengthened")
        # the exporter folds the transpose of a small table
        tensor.CopyFrom(numpy_helper.from_array(longer.get(name, np.ascontiguousarray(longer_ID.T)), name))
    constants[ROWS].CopyFrom(numpy_helper.from_array(np.array(len(longer_ID), np.int64), ROWS))
    del model.graph.value_info[:]  # shapes with the old number of items; readers infer them
    onnx.checker.check_model(model, full_check=True)
    return model


def prove(old: Path, new: Path, num_old: int, num_new: int, sequences: Sequences) -> dict[str, Any]:
    """Compare the two graphs, of `num_old` and of `num_old + num_new` items; figures, or `ParityError`."""
    before = OnnxRecommender(old)
    k = before.k
    drawn = parity_requests(sequences, _PROVEN_REQUESTS, k)
    known = [history[(history > 0) & (history <= num_old)] for history in drawn.histories]  # what is new is known to one alone
    requests = Requests(known, drawn.target_N)
    if any(tensor.name == FIRST for tensor in onnx.load(old).graph.initializer):  # its lists are exact only nearly always
        ranking = _whole_ranking(old, new.parent, num_old, requests)
        expected = Lists(ranking.index_NK[:, :k], ranking.score_NK[:, :k])
    else:
        expected = answers(before, requests, k, batch_size=_BATCH)
    whole = _whole_ranking(new, new.parent, num_old + num_new, requests)
    ranked, moved, difference = 0, 0, 0.0
    for row, (index_I, score_I) in enumerate(zip(whole.index_NK, whole.score_NK, strict=True)):
        is_old, there = index_I <= num_old, score_I > -np.inf
        ranked += int((~is_old & there).sum())
        index_K, score_K = index_I[is_old & there][:k], score_I[is_old & there][:k]
        ranked_K = expected.score_NK[row] > -np.inf
        if len(index_K) != ranked_K.sum():
            raise ParityError("with the new items taken out, another number of items is left")
        difference = max(difference, float(np.abs(score_K - expected.score_NK[row][ranked_K]).max(initial=0)))
        moved += _moved(expected.index_NK[row][ranked_K], expected.score_NK[row][ranked_K], index_K)
    if moved or difference > _CLOSE:
        raise ParityError(f"with the new items taken out, {moved} lists differ, and scores by up to {difference:.1e}")
    if ranked != num_new * len(requests.histories):
        raise ParityError(f"only {ranked} of {num_new * len(requests.histories)} times a new item was ranked")
    recommended = np.unique(answers(OnnxRecommender(new), requests, k).index_NK)
    return {
        "requests": len(requests.histories),
        "max_score_difference": difference,
        "in_some_top_k": int((recommended > num_old).sum()),
    }


def _moved(before_K: np.ndarray, score_K: np.ndarray, after_K: np.ndarray) -> bool:
    """Whether two lists differ by more than the order of items whose scores are as good as equal."""
    return any(
        one != other and abs(score_K[place] - score_K[list(before_K).index(other)] if other in before_K else np.inf) > _CLOSE
        for place, (one, other) in enumerate(zip(before_K, after_K, strict=True))
    )


def _whole_ranking(graph: Path, folder: Path, num_items: int, requests: Requests) -> Lists:
    """All items in their order, by a copy of the graph in `folder` that returns them."""
    everything = folder / "whole-ranking.onnx"
    onnx.save(_returning(onnx.load(graph), num_items), everything)
    try:
        return answers(OnnxRecommender(everything), requests, num_items, batch_size=_BATCH)
    finally:
        everything.unlink()


def _returning(model: onnx.ModelProto, k: int) -> onnx.ModelProto:
    """A copy that returns `k` items."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    del model.graph.value_info[:]  # shapes with the former number of items
    model.graph.initializer.append(numpy_helper.from_array(np.array([k], np.int64), "whole_k"))
    for node in model.graph.node:
        if node.op_type == "TopK":
            node.input[1] = "whole_k"
    for output in model.graph.output:
        assert output.name in OUTPUTS
        output.type.tensor_type.shape.dim[1].dim_value = k
    return model


def _check_student(graph: Artifact, model: onnx.ModelProto, student: Artifact) -> None:
    made_of = {entry.key: entry.value for entry in model.metadata_props}.get("recdistill.student")
    if made_of != student.digest:
        raise AppendError(
            f"{graph.path} was exported from another student than {student.path}; its rows would lie in another space"
        )


def _all_ids(graph: Artifact, items: pl.DataFrame) -> list[str]:
    item_ids = json.loads(graph.file(ITEM_IDS).read_bytes())
    if known := sorted(set(items["item_id"]) & set(item_ids)):
        raise DataError(f"{len(known)} of the items are in the graph already, {known[0]!r} for one; leave them out")
    return [*item_ids, *items["item_id"]]
