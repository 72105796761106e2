"""Stage: a student as one ONNX graph (see `export/graph.py`), checked against PyTorch before it is kept.

`torch.onnx.export(dynamo=True)`: optimum-onnx, which wraps the same exporter for Hugging Face tasks, has no task for a graph
that ends in the top-K of a catalogue, and its release needs an older transformers.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import onnx
import torch

from export.config import ExportSection
from export.graph import INPUT, OUTPUTS, ServingGraph
from export.parity import compare, parity_histories, require_overlap
from foundation.artifact import Draft
from recommender.runtimes import GRAPH
from recommender.runtimes.onnxruntime import OnnxRecommender
from recommender.split import Sequences
from recommender.student import Student, StudentRecommender

ITEM_IDS = "item_ids.json"


def build_onnx(student: Student, sequences: Sequences, section: ExportSection, digest: str, draft: Draft) -> None:
    """Export, check, compare with PyTorch and write graph and item ids; `digest` (of the student) goes into the graph."""
    if section.k >= sequences.num_items:
        raise ValueError(f"export.k = {section.k} needs a catalogue of more items than that, it has {sequences.num_items}")
    graph = draft.path / GRAPH
    _export(ServingGraph(student.cpu(), section.k).eval(), section.opset, digest, graph)
    (draft.path / ITEM_IDS).write_text(json.dumps(sequences.item_ids))
    parity = compare(StudentRecommender(student), OnnxRecommender(graph), parity_histories(sequences, section), section.k)
    require_overlap(parity, section.min_overlap, "ONNX Runtime", "PyTorch")
    draft.metrics |= {"parity": parity.to_dict(), "num_parameters": student.num_parameters, "opset": section.opset}


def _export(module: ServingGraph, opset: int, digest: str, out: Path) -> None:
    dim = torch.export.Dim
    shapes = {"history_BL": {0: dim("batch", max=65536), 1: dim("length", max=65536)}}
    example = torch.randint(1, len(module.table_ID), (3, module.student.section.max_length + 2))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation notes from inside torch's exporter
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
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
