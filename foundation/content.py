"""What a file inside an artefact may be, checked by its type when it is written and again before it is read.

The digest says that a file is the one that was written; this says that it is harmless and whole, whoever wrote it: only
formats that hold data and no code, a readable header, no reference to another file, and no NaN or infinity in a weight.
"""

from __future__ import annotations

import json
import math
import mmap
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from foundation.failure import first_line, is_library_error, is_machine_error, says_no_memory

MAX_JSON_BYTES = 64 << 20
_TEXT = (".txt", ".md", ".html", ".jinja", ".svg", ".pbtxt")
_OPAQUE = (".engine", ".model")  # TensorRT plans and sentencepiece vocabularies: only their own library can read them
# The exponent bits of each floating type: all set in NaN and infinity alone.
_EXPONENT = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "C64": (np.uint32, 0x7F80_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F8_E5M2": (np.uint8, 0x7C),
    "F8_E4M3": (np.uint8, 0x7F),  # no infinity; NaN alone has all bits set
    "F8_E8M0": (np.uint8, 0xFF),
}
_PLAIN = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")  # hold no NaN
_SCAN_ELEMENTS = 1 << 22
_TABLE_FREE_BYTES = 8 << 30  # address space in which any table is read …
_TABLE_RATIO = 500  # … and, for large ones, so many times their size
ONE_FILE: Any = {"glob": False, "hive_partitioning": False}  # polars: a path is a name, not a pattern or a partition


class ContentError(RuntimeError):
    """A file that is damaged or that an artefact must not hold; the message says which and why."""


def check_content(path: Path) -> None:
    """Raise `ContentError` unless the file at `path` is of an allowed type, readable and free of NaN and infinity."""
    suffix = path.suffix
    if suffix in _CHECKS:
        try:
            _CHECKS[suffix](path)
        except ContentError:
            raise
        except BaseException as error:  # each library has its own; all mean that the file cannot be read
            if not is_library_error(error) or is_machine_error(error):
                raise
            raise ContentError(
                f"{path} is not a readable {suffix} file ({first_line(str(error), type(error).__name__)})"
            ) from None
    elif suffix not in _TEXT + _OPAQUE:
        allowed = ", ".join(sorted([*_CHECKS, *_TEXT, *_OPAQUE]))
        raise ContentError(
            f"{path}: artefacts hold no {suffix or 'nameless'} files (allowed: {allowed}; a pickle is never written or read)"
        )


def read_json(path: Path) -> Any:
    """JSON as the standard has it (no NaN, no infinity), of bounded size and depth."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ContentError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB")
    try:
        return json.loads(path.read_bytes(), parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ContentError(f"{path} is not valid JSON ({first_line(str(error), type(error).__name__)})") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def _check_parquet(path: Path) -> None:
    """Read once in a process of its own, of bounded address space: a header that lies about a size aborts the whole process."""
    own, _ = resource.getrlimit(resource.RLIMIT_AS)
    cap = _TABLE_FREE_BYTES + _TABLE_RATIO * path.stat().st_size
    limit = cap if own == resource.RLIM_INFINITY else min(own, cap)
    command = [sys.executable, "-P", "-c", _TRY_PARQUET, str(path), json.dumps(ONE_FILE), str(limit)]
    tried = subprocess.run(command, capture_output=True, text=True)
    if not tried.returncode:
        return
    said = tried.stderr.strip() or f"its reader ended with code {tried.returncode}"
    if says_no_memory(said) and limit == cap:
        raise ContentError(f"{path} of {path.stat().st_size:,} bytes needs more than {cap >> 30} GiB when read; it is refused")
    if says_no_memory(said) or tried.returncode == -signal.SIGKILL or "jemalloc" in said:
        raise MemoryError(f"reading {path}: {first_line(said)}")
    raise ContentError(f"{path} is not a readable Parquet file ({first_line(said)})")


# With one thread: several that lack memory at once write their last words into each other's.
_TRY_PARQUET = """
import json, os, resource, sys
os.environ["POLARS_MAX_THREADS"] = "1"
import polars as pl
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[3]), resource.getrlimit(resource.RLIMIT_AS)[1]))
try:
    pl.read_parquet(sys.argv[1], **json.loads(sys.argv[2]))
except BaseException as error:
    sys.exit(str(error))
"""


def _check_safetensors(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, "np"):  # the library checks header, offsets and overlaps
        pass
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        header_bytes = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + header_bytes])
        for name, tensor in header.items():
            if name == "__metadata__" or tensor["dtype"] in _PLAIN:
                continue
            if tensor["dtype"] not in _EXPONENT:
                raise ContentError(f"{path}: tensor {name!r} is of type {tensor['dtype']}, which artefacts do not use")
            start, stop = (8 + header_bytes + offset for offset in tensor["data_offsets"])
            _check_finite(content, start, stop, tensor["dtype"], f"{path}: tensor {name!r}")


def _check_finite(content: Any, start: int, stop: int, dtype: str, what: str) -> None:
    kind, mask = _EXPONENT[dtype]
    size = np.dtype(kind).itemsize
    for first in range(start, stop, _SCAN_ELEMENTS * size):
        count = (min(first + _SCAN_ELEMENTS * size, stop) - first) // size
        bits = np.frombuffer(content[first : first + count * size], kind)
        if ((bits & kind(mask)) == mask).any():
            raise ContentError(f"{what} holds NaN or infinity; the training that made it went wrong, or the file was changed")


def _check_onnx(path: Path) -> None:
    import onnx
    from onnx import TensorProto as TP
    from onnx import numpy_helper

    model = onnx.load(path, load_external_data=False)
    if model.functions:
        raise ContentError(f"{path} holds functions of its own; a graph of plain operators is needed")
    for tensor in _onnx_tensors(model.graph):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ContentError(f"{path}: tensor {tensor.name!r} refers to another file; the graph must hold all its weights")
    onnx.checker.check_model(model)
    for tensor in _onnx_tensors(model.graph):
        if TP.DataType.Name(tensor.data_type).startswith(("FLOAT", "DOUBLE", "BFLOAT")):
            values = numpy_helper.to_array(tensor).astype(np.float64)
            # Minus infinity is a constant of many graphs (masks); in a weight, which is never a scalar, nothing infinite is.
            if np.isnan(values).any() or (values.size > 1 and np.isinf(values).any()):
                raise ContentError(f"{path}: tensor {tensor.name!r} holds NaN or infinity")


def _onnx_tensors(graph: Any) -> Any:
    """Every tensor of a graph: initializers, constants and those of sub-graphs."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (*attribute.sparse_tensors, attribute.sparse_tensor):
                yield from (sparse.values, sparse.indices)
            if not all(math.isfinite(value) or value == -math.inf for value in (attribute.f, *attribute.floats)):
                raise ContentError(f"attribute {attribute.name!r} of node {node.name!r} holds NaN or infinity")
            if attribute.HasField("g"):
                yield from _onnx_tensors(attribute.g)
            for inner in attribute.graphs:
                yield from _onnx_tensors(inner)


def _check_ir(path: Path) -> None:
    """A graph of OpenVINO: XML that refers to ranges of the .bin file beside it."""
    text, weights = path.read_bytes(), path.with_suffix(".bin")
    if weights.is_symlink() or not weights.is_file():
        raise ContentError(f"{path} needs its weights, {weights.name}, beside it")
    if len(text) > MAX_JSON_BYTES or b"<!" in text:  # no declarations: no entities that expand or name other files
        raise ContentError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB, or has declarations, which no such graph needs")
    root = ElementTree.fromstring(text)
    if root.tag != "net":
        raise ContentError(f"{path} is no graph of OpenVINO")
    with weights.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for layer in root.iterfind("layers/layer[@type='Const']"):
            data = layer.find("data")
            if data is None:
                raise ContentError(f"{path}: constant {layer.get('name')!r} has no data")
            start, size = int(data.attrib["offset"]), int(data.attrib["size"])
            if start < 0 or size < 0 or start + size > len(content):
                raise ContentError(f"{path}: constant {layer.get('name')!r} lies outside of {weights.name}")
            dtype = data.attrib["element_type"].upper()
            one = dtype in _EXPONENT and size == np.dtype(_EXPONENT[dtype][0]).itemsize  # a mask's minus infinity
            if dtype in _EXPONENT and not one:
                _check_finite(content, start, start + size, dtype, f"{path}: constant {layer.get('name')!r}")


def _check_weights(path: Path) -> None:
    if not path.with_suffix(".xml").is_file():
        raise ContentError(f"{path}: artefacts hold no .bin files, but for weights of a graph of OpenVINO beside its .xml")


_CHECKS = {
    ".safetensors": _check_safetensors,
    ".onnx": _check_onnx,
    ".parquet": _check_parquet,
    ".json": read_json,
    ".xml": _check_ir,
    ".bin": _check_weights,
}
