"""Stage: TensorRT engines from ONNX graphs, one engine per precision.

`tensorrt_rtx` builds ahead of time for named compute capabilities on any machine, with or without a GPU, and one engine serves
all of them; `tensorrt` builds for the GPU it finds. Networks are strongly typed (TensorRT 11 knows no other): the precision is
the graph's. Where a CUDA device is there, the engines are also run and compared with PyTorch; where there is none, the artefact
says so.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from export.config import MIN_CAPABILITY, ExportSection, TensorRTSection
from export.parity import Lists, Requests, answers, compare, parity_requests
from export.verify import require, row_of
from foundation import console
from foundation.artifact import Artifact, Draft
from recommender.ranking import Recommender
from recommender.runtimes.base import CANDIDATES, EXCLUDE, GRAPH, HISTORY, ITEM_IDS
from recommender.runtimes.tensorrt import TensorRTRecommender, TensorRTUnavailable, import_tensorrt, keeping_log
from recommender.split import Sequences


class EngineError(RuntimeError):
    """An engine that could not be built; the message says why."""


def build_engines(
    graphs: Mapping[str, Artifact],
    reference: Recommender,
    num_parameters: int,
    sequences: Sequences,
    section: ExportSection,
    draft: Draft,
) -> None:
    """An engine of every graph (by precision); figures for each, and what was left out, go into the metrics.

    `reference` is what an engine that can be run here must rank like.
    """
    trt, flavour = import_tensorrt()
    wanted = section.tensorrt
    limits = wanted.model_copy(update={"max_length": max(wanted.max_length, int(sequences.lengths.max()))})
    engines, left_out = [], []
    for precision, exported in console.progress(list(graphs.items()), "TensorRT engines"):
        targets = limits.targets_of(precision) if flavour == "tensorrt_rtx" else []
        if flavour == "tensorrt_rtx":
            lacking = [target for target in limits.targets if target not in targets]
            left_out += [{"precision": precision, "target": target, "why": _needs(precision)} for target in lacking]
        elif not _has(precision):
            left_out.append({"precision": precision, "target": "this GPU", "why": _needs(precision)})
            continue
        started = time.perf_counter()
        plan, summary = build_engine(trt, exported.file(GRAPH), limits, targets)
        path = draft.path / f"{precision}.engine"
        path.write_bytes(plan)
        found = {"flavour": flavour, "precision": precision, "targets": targets or ["this GPU"], "file": path.name}
        build_s = round(time.perf_counter() - started, 2)
        engines.append(found | {"bytes": len(plan), "build_s": build_s, "network": summary})
    shutil.copyfile(next(iter(graphs.values())).file(ITEM_IDS), draft.path / ITEM_IDS)
    draft.metrics |= {
        "flavour": flavour,
        "tensorrt": trt.__version__,
        "profiles": limits.profiles,
        "max_length": limits.max_length,
        "engines": engines,
        "left_out": left_out,
        "num_parameters": num_parameters,
    }
    draft.metrics["status"] = _run(engines, reference, sequences, section, draft)


def build_engine(
    trt: ModuleType, graph: Path, section: TensorRTSection, targets: list[str]
) -> tuple[bytes, dict[str, dict[str, int]]]:
    """The serialized engine of an ONNX graph for all `targets` ("sm89"; none: the GPU at hand), and what it was built from.

    The latter counts the layers of the network by type, and its tensors by data type.
    """
    log = keeping_log(trt)
    builder: Any = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph.read_bytes()):
        reasons = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise EngineError(f"TensorRT cannot parse {graph}: {reasons}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names of layers, for the inspector
    if targets:
        _set_targets(trt, config, targets)
    for first, last in section.profiles:
        config.add_optimization_profile(_profile(builder, network, first, last, section))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"TensorRT could not build {graph} for {', '.join(targets) or 'this GPU'}: {log.reason()}")
    return bytes(plan), _summary(network)


def _profile(builder: Any, network: Any, first: int, last: int, section: TensorRTSection) -> Any:
    """Batches from `first` to `last`, at their best where they are largest (64 at most) and histories of 64."""
    widest = {HISTORY: section.max_length, EXCLUDE: section.max_listed, CANDIDATES: section.max_listed}
    profile = builder.create_optimization_profile()
    best = min(last, max(first, 64))
    for tensor in (network.get_input(number) for number in range(network.num_inputs)):
        width = widest.get(tensor.name)
        sizes = (1, min(64, width), width) if width else (tensor.shape[1],) * 3  # a text vector has one size
        profile.set_shape(tensor.name, (first, sizes[0]), (best, sizes[1]), (last, sizes[2]))
    return profile


def _summary(network: Any) -> dict[str, dict[str, int]]:
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    types = Counter(str(layer.type).rpartition(".")[2] for layer in layers)
    tensors = [layer.get_output(number) for layer in layers for number in range(layer.num_outputs)]
    return {"layers": dict(types), "tensors": dict(Counter(str(tensor.dtype).rpartition(".")[2] for tensor in tensors))}


def _set_targets(trt: ModuleType, config: Any, targets: list[str]) -> None:
    known = sorted((name.lower() for name in trt.ComputeCapability.__members__ if name.startswith("SM")), key=len)
    config.num_compute_capabilities = len(targets)
    for number, target in enumerate(targets):
        if target not in known:
            raise EngineError(
                f"export.tensorrt.targets names {target!r}; this TensorRT-RTX builds for {', '.join(known)}"
                + (" (Hopper, sm90, needs the `tensorrt` flavour on such a machine)" if target == "sm90" else "")
            )
        config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), number)


def _needs(precision: str) -> str:
    return f"{precision} needs sm{MIN_CAPABILITY[precision]} or later"


def _has(precision: str) -> bool:
    import torch

    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor >= MIN_CAPABILITY.get(precision, 0)


def _run(
    engines: list[dict[str, Any]], reference: Recommender, sequences: Sequences, section: ExportSection, draft: Draft
) -> str:
    """Run what can be run here; "ran on <device>" or "built, not run"."""
    import torch

    if not torch.cuda.is_available():
        return "built, not run"
    requests = parity_requests(sequences, section.parity_histories, section.k)
    expected, ran = answers(reference, requests, section.k), []
    for engine in engines:
        try:
            _compare(engine, draft.path, expected, requests, section)
        except TensorRTUnavailable as error:
            console.say(f"not run: {error}")
            continue
        ran.append(engine["file"])
    if not ran:
        return "built, not run"
    draft.metrics["ran"] = ran
    return f"ran on {torch.cuda.get_device_name()}"


def _compare(engine: dict[str, Any], folder: Path, expected: Lists, requests: Requests, section: ExportSection) -> None:
    """Put the parity of an engine with PyTorch, and what its inspector counts, into its figures; fail where it is too low."""
    recommender = TensorRTRecommender(folder / engine["file"])
    parity = compare(expected, answers(recommender, requests, section.k), requests)
    require([row_of("the engine", engine["precision"], "TensorRT", 0, parity, section)])
    engine |= {"parity": parity.to_dict(), "inspected_layers": len(json.loads(recommender.inspect()).get("Layers", []))}
