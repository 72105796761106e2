"""What an exported artefact is: inputs, outputs, precision, bytes per part, digests."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import onnx

from export.triton import check_repository
from foundation import console
from foundation.artifact import Artifact, ArtifactError, opens
from recommender.runtimes.base import GRAPH, ITEM_IDS
from recommender.runtimes.text_encoder import ENCODER


@opens
def describe(artifact: Artifact) -> dict[str, Any]:
    """The description of an exported artefact, every file verified; `to_text` prints it."""
    artifact.verify()
    found: dict[str, Any] = {
        "kind": artifact.kind,
        "digest": artifact.digest,
        "files": {name: entry["bytes"] for name, entry in artifact.manifest["files"].items()},
        "sha256": {name: entry["sha256"] for name, entry in artifact.manifest["files"].items()},
    }
    if artifact.kind.startswith("onnx"):
        return found | _graph(onnx.load(artifact.file(GRAPH)), len(json.loads(artifact.file(ITEM_IDS).read_bytes())))
    if artifact.kind == "text-encoder":
        return found | _graph(onnx.load(artifact.file(ENCODER)), 0)
    if artifact.kind == "triton":
        return found | {"models": check_repository(artifact)}
    if artifact.kind == "openvino":
        return found | {"openvino": artifact.metrics["openvino"]}
    if artifact.kind == "tensorrt":
        names = ("flavour", "tensorrt", "profiles", "max_length", "engines", "left_out", "status")
        return found | {name: artifact.metrics[name] for name in names}
    raise ArtifactError(
        f"{artifact.path} is a {artifact.kind!r} artefact, no exported one; `recdistill inspect` says what it is"
    )


def to_text(found: dict[str, Any]) -> str:
    """One line a fact."""
    lines = [f"{found['kind']} {found['digest'][:12]}"]
    for name, size in found["files"].items():
        lines.append(f"  file {name}: {size:,} bytes, sha256 {found['sha256'][name]}")
    for role in ("input", "output"):
        lines += [f"  {role} {name}: {kind}" for name, kind in found.get(f"{role}s", {}).items()]
    for key, label in (("opset", "opset"), ("metadata", "metadata"), ("operators", "operators")):
        if key in found:
            lines.append(f"  {label}: " + ", ".join(f"{name} {value}" for name, value in found[key].items()))
    if "not_standard" in found:
        only = ", ".join(found["not_standard"])
        lines.append(f"  runs in: {f'ONNX Runtime alone, for {only}' if only else 'whatever reads ONNX, browsers included'}")
    for key, label in (("bytes_by_part", "bytes of"), ("bytes_by_type", "bytes in")):
        lines += [f"  {label} {name}: {size:,}" for name, size in found.get(key, {}).items()]
    for engine in found.get("engines", []):
        targets = ", ".join(engine["targets"])
        lines.append(f"  engine {engine['file']}: {engine['precision']} for {targets}, {engine['bytes']:,} bytes")
    lines += [f"  no {left['precision']} for {left['target']}: {left['why']}" for left in found.get("left_out", [])]
    lines += [f"  model of Triton: {name}" for name in found.get("models", [])]
    if "openvino" in found:
        lines.append(f"  converted by OpenVINO {found['openvino']}")
    if "status" in found:
        lines.append(f"  {found['flavour']} {found['tensorrt']}, batches {found['profiles']}: {found['status']}")
    return "\n".join(console.one_line(line) for line in lines)


def _type(entry: onnx.ValueInfoProto) -> str:
    tensor = entry.type.tensor_type
    shape = ", ".join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type).lower()}[{shape}]"


def _graph(model: onnx.ModelProto, num_items: int) -> dict[str, Any]:
    """The item table is what has a row or a column for each of `num_items` (0: there is none) and padding."""
    parts, types = Counter(), Counter()
    for tensor in model.graph.initializer:
        size = len(tensor.raw_data) or tensor.ByteSize()
        types[onnx.TensorProto.DataType.Name(tensor.data_type).lower()] += size
        parts["item table" if num_items and num_items + 1 in tensor.dims else "encoder"] += size
    return {
        "inputs": {entry.name: _type(entry) for entry in model.graph.input},
        "outputs": {entry.name: _type(entry) for entry in model.graph.output},
        "opset": {entry.domain or "onnx": entry.version for entry in model.opset_import},
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
        "bytes_by_part": dict(parts) | {"structure": model.ByteSize() - sum(parts.values())},
        "bytes_by_type": dict(types),
        "not_standard": sorted(
            {f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")}
        ),
        "operators": dict(sorted(Counter(node.op_type for node in model.graph.node).items())),
    }
