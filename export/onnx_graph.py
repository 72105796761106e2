"""Stage: a student as one ONNX graph (see `export/graph.py`), checked in every runtime here before it is kept."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import onnx
import torch

from export.config import ExportSection
from export.graph import PARAMETERS, ServingGraph, dynamic_dimensions, example
from export.parity import answers, parity_requests
from export.to_onnx import to_onnx
from export.verify import require, verify_graph
from foundation.artifact import Draft
from recommender.runtimes.base import GRAPH, ITEM_IDS, OUTPUTS
from recommender.split import Sequences
from recommender.student import Student, StudentRecommender

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def build_onnx(
    student: Student, sequences: Sequences, section: ExportSection, digest: str, draft: Draft, precision: str = ""
) -> None:
    """Export, check, compare with PyTorch and write graph and item ids; `digest` (of the student) goes into the graph.

    `precision` is another one than the recipe's: an engine may want its graph in bf16.
    """
    if section.k >= sequences.num_items:
        raise ValueError(f"export.k = {section.k} needs a catalogue of more items than that, it has {sequences.num_items}")
    graph, precision = draft.path / GRAPH, precision or section.dtype
    write_graph(
        ServingGraph(student.cpu(), section.k, DTYPES[precision], **section.graph_options),
        section.inputs,
        section.opset,
        digest,
        graph,
    )
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
    """Write `graph` with these optional inputs as ONNX."""
    onnx.save(serving_model(graph, inputs, opset, digest), out)


def serving_model(graph: ServingGraph, inputs: Collection[str], opset: int, digest: str) -> onnx.ModelProto:
    """`graph` with these optional inputs in ONNX; `digest` of the student goes into it."""
    request = example(graph, inputs)
    names = [name for name, parameter in PARAMETERS.items() if parameter in request]
    properties = {"recdistill.student": digest}
    return to_onnx(graph, request, dynamic_dimensions(request), (names, OUTPUTS), opset, properties)
