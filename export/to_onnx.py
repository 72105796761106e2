"""A PyTorch module as an ONNX model, checked strictly and free of this machine's traces.

`torch.onnx.export(dynamo=True)`: optimum-onnx, which wraps the same exporter for Hugging Face tasks, has no task for a graph
that ends in the top-K of a catalogue, and its release needs an older transformers.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn


def to_onnx(
    module: nn.Module,
    request: Mapping[str, Tensor],
    dynamic: Mapping[str, Mapping[int, Any]],
    names: tuple[Sequence[str], Sequence[str]],
    opset: int,
    properties: dict[str, str],
) -> onnx.ModelProto:
    """`request` has an example of every parameter, `dynamic` its dynamic dimensions; `names` are of inputs and outputs."""
    for library in ("torch.onnx", "onnx_ir"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecation notes from inside torch's exporter
        program = torch.onnx.export(
            module.eval(),
            kwargs=dict(request),
            dynamo=True,
            verbose=False,
            input_names=names[0],
            output_names=names[1],
            dynamic_shapes={name: dict(dynamic[name]) for name in request},
            opset_version=opset,
        )
    assert program is not None
    model = program.model_proto
    for entry in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, model.graph):
        del entry.metadata_props[:]  # the exporter's stack traces, with the paths of this machine
        entry.doc_string = ""
    onnx.helper.set_model_props(model, properties)
    onnx.checker.check_model(model, full_check=True)
    return model
