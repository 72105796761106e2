"""Stage: a quantized variant of an exported student, judged on ranking against the float graph."""

from __future__ import annotations

import importlib
import shutil

import numpy as np
import onnx

from foundation.artifact import Artifact, Draft
from quantize.config import QuantizeSection
from quantize.methods import GRAPH_METHODS
from recommender.evaluate import evaluate
from recommender.metrics import ndcg, paired_relative_difference, summary
from recommender.ranking import EVALUATION_K, pad_left
from recommender.runtimes import open_graph
from recommender.runtimes.base import GRAPH, GraphRecommender
from recommender.runtimes.onnxruntime import OnnxRecommender
from recommender.split import Sequences


def build_quantized_graph(
    method: str, exported: Artifact, sequences: Sequences, section: QuantizeSection, draft: Draft
) -> None:
    """Quantize, check, and compare test NDCG@10 with the float graph, user by user."""
    source, float_graph = onnx.load(exported.file(GRAPH)), OnnxRecommender(exported.file(GRAPH))
    calibration = _calibration(float_graph, sequences, section)
    model = importlib.import_module(GRAPH_METHODS[method]).quantize(source, section, calibration)
    # Quantizers list every operator set their library knows; keep those the graph uses.
    used = {node.domain for node in model.graph.node} | {""}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.helper.set_model_props(
        model, {entry.key: entry.value for entry in source.metadata_props} | {"recdistill.quantization": method}
    )
    onnx.save(model, draft.path / GRAPH)
    for name in exported.manifest["files"]:
        if name != GRAPH:
            shutil.copyfile(exported.file(name), draft.path / name)
    runtime = "onnxruntime-plain" if method.startswith("fp8") else "onnxruntime"
    quantized_graph = open_graph(runtime, draft.path / GRAPH)
    k = min(EVALUATION_K, float_graph.k)
    float_U, quantized_U = (evaluate(graph, sequences, "test", k) for graph in (float_graph, quantized_graph))
    draft.metrics |= {
        "test": summary(quantized_U),
        "ndcg_at_10_vs_float": paired_relative_difference(ndcg(quantized_U, 10), ndcg(float_U, 10)),
        "num_parameters": exported.metrics["num_parameters"],
        "graph_bytes": (draft.path / GRAPH).stat().st_size,
        "float_graph_bytes": exported.file(GRAPH).stat().st_size,
    }


def _calibration(graph: GraphRecommender, sequences: Sequences, section: QuantizeSection) -> list[dict[str, np.ndarray]]:
    """Feeds of the graph with training histories of drawn users, whose held-out items are left out."""
    users = np.random.default_rng(0).permutation(sequences.num_users)[: section.calibration_histories]
    whole = np.resize(users, -(-len(users) // 16) * 16)
    histories = [sequences.train(int(user))[-section.calibration_length :] for user in whole]
    batches = [histories[start : start + 16] for start in range(0, len(histories), 16)]  # of one size, as calibrators want
    return [graph.feeds(pad_left(batch, section.calibration_length)) for batch in batches]
