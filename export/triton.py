"""Stage: a model repository for Triton Inference Server.

    <name>/config.pbtxt, item_ids.json, <version>/model.onnx          onnxruntime backend
    <name>-<precision>/…                <version>/<precision>.engine  tensorrt backend

Requests share a batch where they wait for one another (dynamic batching); Triton puts only those together whose histories have
one length, so that a client pads to few lengths (`recommender/runtimes/triton.py` does). A full queue refuses at once, and a
request that waited too long is refused: load is shed before latency is lost. Configurations are written and read by Triton's
own protobuf messages, which refuse what they do not know, and compared with the graph, of which they know nothing. Engines of
TensorRT for RTX are not for Triton's backend and are left out.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from export.config import TritonSection
from foundation.artifact import Artifact, Draft, Unavailable, opens
from recommender.runtimes.base import GRAPH, ITEM_IDS

CONFIG = "config.pbtxt"
_TYPES = {onnx.TensorProto.INT64: "TYPE_INT64", onnx.TensorProto.FLOAT: "TYPE_FP32"}
_KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}


class TritonError(ValueError):
    """A configuration that Triton, or the graph it is for, does not accept; the message says why."""


def build_repository(graph: Artifact, engines: Artifact | None, section: TritonSection, max_length: int, draft: Draft) -> None:
    """Write a model of the graph, and of every engine Triton's backend can load; `max_length` is of the warm-up's histories."""
    path = graph.file(GRAPH)
    signature = signature_of(onnx.load(path))
    models = {section.name: (path, "onnxruntime")}
    if engines is not None:
        named = {f"{section.name}-{entry['precision']}": entry["file"] for entry in engines.metrics["engines"]}
        models |= {name: (engines.file(file), "tensorrt") for name, file in named.items()}
    for name, (file, backend) in models.items():
        folder = draft.path / name / str(section.version)
        folder.mkdir(parents=True)
        shutil.copyfile(file, folder / file.name)
        shutil.copyfile(graph.file(ITEM_IDS), folder.parent / ITEM_IDS)
        config = model_config(name, backend, file.name, signature, section, max_length, graph.digest)
        (folder.parent / CONFIG).write_text(config)
        check_model(folder.parent, signature)
    draft.metrics |= {"models": list(models), "num_parameters": graph.metrics["num_parameters"]}


def signature_of(model: onnx.ModelProto) -> dict[str, dict[str, tuple[str, list[int]]]]:
    """Triton's type and the shape without the batch, -1 where it is dynamic, of every input and output."""

    def entries(values: Any) -> dict[str, tuple[str, list[int]]]:
        found = {}
        for value in values:
            batch, *dims = value.type.tensor_type.shape.dim
            if not batch.dim_param:
                raise TritonError(f"{value.name!r} has a fixed batch of {batch.dim_value}; Triton needs a dynamic one to batch")
            found[value.name] = (_TYPES[value.type.tensor_type.elem_type], [dim.dim_value or -1 for dim in dims])
        return found

    return {"input": entries(model.graph.input), "output": entries(model.graph.output)}


def model_config(
    name: str,
    backend: str,
    file: str,
    signature: Mapping[str, Mapping[str, tuple[str, list[int]]]],
    section: TritonSection,
    max_length: int,
    digest: str,
) -> str:
    """The text of a model's config.pbtxt."""
    messages, text_format = _messages()
    tensors = {
        role: [{"name": tensor, "data_type": kind, "dims": dims} for tensor, (kind, dims) in entries.items()]
        for role, entries in signature.items()
    }
    sizes = sorted({1, section.max_batch_size})
    filled = {
        tensor: {"data_type": kind, "dims": [max_length if size < 0 else size for size in dims], "zero_data": True}
        for tensor, (kind, dims) in signature["input"].items()
    }
    queue = {
        "timeout_action": "REJECT",
        "default_timeout_microseconds": section.queue_timeout_us,
        "max_queue_size": section.max_queue_size,
    }
    threads = {"intra_op_thread_count": {"string_value": str(section.num_threads)}} if backend == "onnxruntime" else {}
    config = messages.ModelConfig(
        name=name,
        backend=backend,
        default_model_filename=file,
        max_batch_size=section.max_batch_size,
        **tensors,
        dynamic_batching={"max_queue_delay_microseconds": section.max_queue_delay_us, "default_queue_policy": queue},
        version_policy={"latest": {"num_versions": section.keep_versions}},
        instance_group=[{"count": section.instances, "kind": "KIND_GPU" if backend == "tensorrt" else _KINDS[section.device]}],
        model_warmup=[{"name": f"batch of {size}", "batch_size": size, "inputs": filled} for size in sizes],
        parameters=threads | {"recdistill.graph": {"string_value": digest}},
    )
    return text_format.MessageToString(config)


@opens
def check_repository(repository: Artifact) -> list[str]:
    """The models of a repository, each with its graph and configuration checked."""
    repository.verify()
    models = sorted({name.split("/")[0] for name in repository.manifest["files"]})
    graphs = [repository.path / name for name in repository.manifest["files"] if name.endswith(GRAPH)]
    if not graphs:
        raise TritonError(f"{repository.path} has no ONNX graph")
    signature = signature_of(onnx.load(graphs[0]))
    for model in models:
        check_model(repository.path / model, signature)
    return models


def check_model(folder: Path, signature: Mapping[str, Mapping[str, tuple[str, list[int]]]]) -> None:
    """Raise `TritonError` unless Triton's schema accepts a model's configuration, and it fits its files and its graph."""
    messages, text_format = _messages()
    where = folder / CONFIG
    try:
        config = text_format.Parse(where.read_text(), messages.ModelConfig())
    except text_format.ParseError as error:
        raise TritonError(f"{where} is not a configuration of Triton: {error}") from None
    if config.name != folder.name:
        raise TritonError(f"{where} is of a model {config.name!r}, its folder says {folder.name!r}")
    versions = [entry for entry in folder.iterdir() if entry.is_dir() and entry.name.isdigit()]
    for version in versions:
        if not (version / config.default_model_filename).is_file():
            raise TritonError(f"{where} names {config.default_model_filename!r}, which {version} has not")
    if not versions:
        raise TritonError(f"{folder} has no folder of a version")
    names = messages.DataType.Name
    for role in ("input", "output"):
        written = {entry.name: (names(entry.data_type), list(entry.dims)) for entry in getattr(config, role)}
        if written != dict(signature[role]):
            raise TritonError(f"{where}: {role}s are {written}, the graph's {dict(signature[role])}")
    for warm_up in config.model_warmup:
        if set(warm_up.inputs) != set(signature["input"]):
            raise TritonError(f"{where}: warm-up {warm_up.name!r} does not fill the graph's inputs")
        if warm_up.batch_size > config.max_batch_size:
            raise TritonError(f"{where}: warm-up {warm_up.name!r} is larger than max_batch_size = {config.max_batch_size}")


def _messages() -> tuple[Any, Any]:
    """Triton's model_config_pb2, and the text format of protobuf."""
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2
    except (ImportError, RuntimeError):  # without its extra `grpc` the package says so by RuntimeError
        raise Unavailable("Triton's messages are not installed; `pip install -e .[triton]`") from None
    return model_config_pb2, text_format
