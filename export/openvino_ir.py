"""Stage: the ONNX graph as files of OpenVINO, for what reads nothing else (OpenVINO itself reads ONNX as well)."""

from __future__ import annotations

import shutil

from export.config import ExportSection
from export.parity import answers, compare, parity_requests
from export.verify import require, row_of
from foundation.artifact import Artifact, Draft, Unavailable
from recommender.runtimes.base import GRAPH, ITEM_IDS
from recommender.runtimes.onnxruntime import OnnxRecommender
from recommender.runtimes.openvino import IR, OpenVinoFloatRecommender
from recommender.split import Sequences


def build_ir(graph: Artifact, sequences: Sequences, section: ExportSection, draft: Draft) -> None:
    """Convert, run, and compare with the graph in ONNX Runtime; weights keep their precision."""
    try:
        import openvino
    except ImportError:
        raise Unavailable("OpenVINO is not installed; `pip install -e .[openvino]`") from None
    source = graph.file(GRAPH)
    model = openvino.convert_model(str(source))
    for number, operation in enumerate(model.get_ordered_ops()):
        if operation.get_type_name() not in ("Parameter", "Result"):  # others' names count what this process converted before
            operation.set_friendly_name(f"{operation.get_type_name()}_{number}")
    openvino.save_model(model, draft.path / IR, compress_to_fp16=False)
    shutil.copyfile(graph.file(ITEM_IDS), draft.path / ITEM_IDS)
    requests = parity_requests(sequences, section.parity_histories, section.k)
    expected = answers(OnnxRecommender(source), requests, section.k)
    parity = compare(expected, answers(OpenVinoFloatRecommender(draft.path / IR), requests, section.k), requests)
    precision = graph.kind.removeprefix("onnx").lstrip("-") or "fp32"
    require([row_of("the converted graph", precision, "OpenVINO", 0, parity, section)])
    draft.metrics |= {
        "parity": parity.to_dict(),
        "openvino": openvino.__version__,
        "num_parameters": graph.metrics["num_parameters"],
    }
