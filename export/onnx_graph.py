"""Stage: a student as one ONNX graph (see `export/graph.py`), checked in every runtime here before it is kept.

`torch.onnx.export(dynamo=True)`: optimum-onnx, which wraps the same exporter for Hugging Face tasks, has no task for a graph
that ends in the top-K of a catalogue, and its release needs an older transformers.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Collection
from pathlib import Path

import onnx
import torch

from export.config import ExportSection
from export.graph import PARAMETERS, ServingGraph, example
from export.parity import answers, parity_requests
from export.verify import require, verify_graph
from foundation.artifact import Draft
from recommender.runtimes.base import GRAPH, HISTORY, ITEM_IDS, OUTPUTS, QUERY
from recommender.split import Sequences
from recommender.student import Student, StudentRecommender

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def build_onnx(
    student: Student, sequences: Sequences, section: ExportSection, digest: str, draft: Draft, precision: str = ""
) -> None:
    """Export, check, compare with PyTorch and write graph and item ids; `digest` (of the student) goes into the graph.

    `precision` is another one than the recipe's: an engine may want its graph in bf16.
    """
    if section.k >= sequences.num_items:
        raise ValueError(f"export.k = {section.k} needs a catalogue of more items than that, it has {sequences.num_items}")
    graph, precision = draft.path / GRAPH, precision or section.dtype
    write_graph(ServingGraph(student.cpu(), section.k, _DTYPES[precision]), section.inputs, section.opset, digest, graph)
    (draft.path / ITEM_IDS).write_text(json.dumps(sequences.item_ids))
    requests = parity_requests(sequences, section.parity_histories, section.k)
    reference = answers(StudentRecommender(student), requests, section.k)
    rows = require(verify_graph("the graph", graph, precision, reference, requests, section))
    judged = next(row.parity for row in rows if row.parity is not None)
    draft.metrics |= {
        "parity": judged.to_dict(),
        "verified_in": [f"{row.runtime} ({row.num_threads or 'all'} threads)" for row in rows if row.parity is not None],
        "num_parameters": student.num_parameters,
        "opset": section.opset,
    }


def write_graph(graph: ServingGraph, inputs: Collection[str], opset: int, digest: str, out: Path) -> None:
    """Write `graph` with these optional inputs as ONNX, checked strictly and free of this machine's traces."""
    sizes = {HISTORY: "length"} | {name: f"{name}_length" for name in PARAMETERS if name != QUERY}
    names = [HISTORY, *(name for name in PARAMETERS if name in inputs)]
    batch = torch.export.Dim("batch", max=65536)
    request = example(graph, inputs)
    shapes = {
        parameter: {0: batch} | ({1: torch.export.Dim(sizes[name], max=65536)} if name in sizes else {})
        for name, parameter in zip(names, request, strict=True)
    }
    for library in ("torch.onnx", "onnx_ir"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation notes from inside torch's exporter
        program = torch.onnx.export(
            graph.eval(),
            kwargs=request,
            dynamo=True,
            verbose=False,
            input_names=names,
            output_names=list(OUTPUTS),
            dynamic_shapes=shapes,
            opset_version=opset,
        )
    assert program is not None
    model = program.model_proto
    for entry in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, model.graph):
        del entry.metadata_props[:]  # the exporter's stack traces, with the paths of this machine
        entry.doc_string = ""
    onnx.helper.set_model_props(model, {"recdistill.student": digest})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, out)
