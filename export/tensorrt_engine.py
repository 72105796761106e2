"""Stage: TensorRT engines from the ONNX graph.

`tensorrt_rtx` builds ahead of time for named compute capabilities on any machine, with or without a GPU; `tensorrt` builds for
the GPU it finds. Networks are strongly typed (TensorRT 11 knows no other): the precision is the graph's. Where a CUDA device is
there, the engine is also run and compared with ONNX Runtime; where there is none, its artefact says so.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType
from typing import Any

from export.config import ExportSection
from export.graph import INPUT
from export.parity import compare, parity_histories, require_overlap
from foundation import console
from foundation.artifact import Artifact, Draft
from recommender.runtimes import GRAPH
from recommender.runtimes.onnxruntime import OnnxRecommender
from recommender.runtimes.tensorrt import TensorRTRecommender, TensorRTUnavailable, import_tensorrt, keeping_log
from recommender.split import Sequences

LOCAL = "local"


class EngineError(RuntimeError):
    """An engine that could not be built; the message says why."""


def build_engines(exported: Artifact, sequences: Sequences, section: ExportSection, draft: Draft) -> None:
    """One engine per target; figures for each go into the metrics."""
    trt, flavour = import_tensorrt()
    limits = section.model_copy(update={"trt_max_length": max(section.trt_max_length, int(sequences.lengths.max()))})
    targets = section.trt_targets if flavour == "tensorrt_rtx" else [LOCAL]
    engines = []
    for target in console.progress(targets, "TensorRT engines"):
        started = time.perf_counter()
        plan = build_engine(trt, exported.file(GRAPH), limits, target)
        path = draft.path / f"{target}.engine"
        path.write_bytes(plan)
        engines.append(
            {"target": target, "file": path.name, "bytes": len(plan), "build_s": round(time.perf_counter() - started, 2)}
        )
    draft.metrics |= {
        "flavour": flavour,
        "tensorrt": trt.__version__,
        "engines": engines,
        "num_parameters": exported.metrics["num_parameters"],
        "status": _run(exported, draft.path, engines, sequences, section, draft),
    }


def build_engine(trt: ModuleType, graph: Path, section: ExportSection, target: str) -> bytes:
    """The serialized engine of an ONNX graph for `target` ("sm89", or "local" for the GPU at hand)."""
    log = keeping_log(trt)
    builder: Any = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph.read_bytes()):
        reasons = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise EngineError(f"TensorRT cannot parse {graph}: {reasons}")
    config = builder.create_builder_config()
    if target != LOCAL:
        _set_target(trt, config, target)
    profile = builder.create_optimization_profile()
    batch, length = section.trt_max_batch, section.trt_max_length
    profile.set_shape(INPUT, (1, 1), (min(64, batch), min(64, length)), (batch, length))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"TensorRT could not build {graph} for {target}: {log.reason()}")
    return bytes(plan)


def _set_target(trt: ModuleType, config: Any, target: str) -> None:
    known = [name.lower() for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    if target not in known:
        raise EngineError(
            f"export.trt_targets names {target!r}; this TensorRT-RTX builds for {', '.join(sorted(known))}"
            + (" (Hopper, sm90, needs the `tensorrt` flavour on such a machine)" if target == "sm90" else "")
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), 0)


def _run(
    exported: Artifact, folder: Path, engines: list[dict], sequences: Sequences, section: ExportSection, draft: Draft
) -> str:
    """Run what can be run here; "ran on <target>" or "built, not run"."""
    for engine in engines:
        try:
            recommender = TensorRTRecommender(folder / engine["file"])
        except TensorRTUnavailable:
            continue
        parity = compare(OnnxRecommender(exported.file(GRAPH)), recommender, parity_histories(sequences, section), section.k)
        require_overlap(parity, section.min_overlap, f"TensorRT ({engine['target']})", "ONNX Runtime")
        draft.metrics["parity"] = parity.to_dict()
        draft.metrics["ran"] = engine["file"]
        return f"ran on {engine['target']}"
    return "built, not run"
