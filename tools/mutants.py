"""Damaged artefacts for `make torture`: how one is damaged, and what happens to a process that opens and uses it."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

_HOSTILE: list[Any] = [
    None,
    -1,
    0,
    2**31,
    2**63,
    1e308,
    "",
    "../../etc/passwd",
    "/etc/passwd",
    "a\0b",
    [],
    {},
    [[]],
    True,
    "x" * 10_000,
]
_HOSTILE_NAMES = [
    "../x",
    "/etc/passwd",
    "a/../../b",
    "",
    ".",
    "manifest.json",
    "a\0b",
    "x" * 300,
    "body/../../x",
    "weights.pkl",
]


class Outcome(Enum):
    """What became of a process that opened a mutant."""

    REFUSED = "refused by name"
    OPENED = "opened and used"
    HANG = "hang"
    CRASH = "crash"
    UNNAMED = "an error without a name"

    @classmethod
    def of(cls, code: int, said: str) -> Outcome:
        if code == 0:
            return cls.REFUSED if "REFUSED" in said else cls.OPENED
        if code == -signal.SIGALRM:
            return cls.HANG
        return cls.UNNAMED if "UNNAMED" in said else cls.CRASH


def open_and_use(folder: Path, num_items: int) -> int:
    """Open the artefact in `folder` as its stage does and use it; prints REFUSED if that ends in an error with a name."""
    from distill.llm import TeacherError
    from foundation.artifact import ArtifactError, Unavailable, load
    from recommender.data import DataError

    try:
        artifact = load(folder)
        artifact.verify()
        _USES.get(artifact.kind, lambda artifact, num_items: None)(artifact, num_items)
    except (ArtifactError, DataError, TeacherError, Unavailable) as error:
        print(f"REFUSED {error}", flush=True)
    return 0


def _use_dataset(artifact: Any, num_items: int) -> None:
    from recommender.data import load_dataset
    from recommender.split import build_sequences

    build_sequences(load_dataset(artifact)).targets_sha256()


def _use_variant(artifact: Any, num_items: int) -> None:
    import numpy as np

    from benchmark.variants import open_variant

    top = open_variant(artifact, 1).recommender.recommend(np.array([[0, 0, 1], [3, 2, 1]], np.int64), 10)
    assert not np.isnan(top[1]).any(), "NaN among the scores"


def _use_student(artifact: Any, num_items: int) -> None:
    import numpy as np

    from recommender.student import StudentRecommender, load_student

    top = StudentRecommender(load_student(artifact)).recommend(np.array([[0, 0, 1], [3, 2, 1]], np.int64), 10)
    assert not np.isnan(top[1]).any(), "NaN among the scores"


def _use_ease(artifact: Any, num_items: int) -> None:
    import numpy as np

    from distill.ease import load_ease

    top = load_ease(artifact).recommend(np.array([[0, 0, 1], [3, 2, 1]], np.int64), 10)
    assert not np.isnan(top[1]).any(), "NaN among the scores"


def _use_targets(artifact: Any, num_items: int) -> None:
    from distill.targets import load_targets

    load_targets(artifact, num_items)


def _use_text(artifact: Any, num_items: int) -> None:
    import numpy as np

    from distill.text import load_text

    assert all(np.isfinite(vectors).all() for vectors in load_text(artifact)), "vectors that are not finite"


def _use_llm(artifact: Any, num_items: int) -> None:
    from distill.llm import load_body, load_tokenizer

    tokens = load_tokenizer(artifact)("thing 1", return_tensors="pt")["input_ids"]
    assert load_body(artifact)(input_ids=tokens).last_hidden_state.isfinite().all(), "states that are not finite"


def _use_item_encoder(artifact: Any, num_items: int) -> None:
    _use_llm(artifact, num_items)
    _use_student(artifact, num_items)


def _use_text_encoder(artifact: Any, num_items: int) -> None:
    import numpy as np

    from export.text_encoder import open_text_encoder

    assert np.isfinite(open_text_encoder(artifact).encode(["thing 1"])).all(), "vectors that are not finite"


def _use_triton(artifact: Any, num_items: int) -> None:
    from export.triton import check_repository

    check_repository(artifact)


_USES: dict[str, Callable[[Any, int], None]] = {
    "dataset": _use_dataset,
    "item-text": _use_text,
    "targets": _use_targets,
    **dict.fromkeys(("ease", "ease-text"), _use_ease),
    "llm": _use_llm,
    "item-encoder": _use_item_encoder,
    **dict.fromkeys(("control-id", "control-text", "control-tuned", "control-ensemble-kd", "student"), _use_student),
    **dict.fromkeys(("popularity", "item-knn", "onnx", "onnx-int8", "onnx-int4"), _use_variant),
    **dict.fromkeys(("teacher", "teacher-int8", "teacher-nf4", "openvino", "onnx-int8-qdq"), _use_variant),
    "text-encoder": _use_text_encoder,
    "triton": _use_triton,
}


# --- damage


def mutate(folder: Path, rng: random.Random) -> str:
    """Damage the artefact in `folder`; what was done, or "" if it came out as it was."""
    before = {path: path.read_bytes() for path in _files(folder)}
    done = rng.choice(_DAMAGES)(folder, rng)
    same = {path: path.read_bytes() for path in _files(folder)} == before
    return "" if same else done


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flip(folder: Path, rng: random.Random) -> str:
    path = rng.choice(_files(folder))
    content = bytearray(path.read_bytes())
    if not content:
        return ""
    for _ in range(rng.choice((1, 1, 1, 8, 64))):
        # headers are where it matters
        at = rng.randrange(min(len(content), 512)) if rng.random() < 0.5 else rng.randrange(len(content))
        content[at] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return f"bits flipped in {path.name}"


def _truncate(folder: Path, rng: random.Random) -> str:
    path = rng.choice(_files(folder))
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content) + 1)])
    return f"{path.name} truncated"


def _extend(folder: Path, rng: random.Random) -> str:
    path = rng.choice(_files(folder))
    with path.open("ab") as stream:
        stream.write(rng.randbytes(rng.choice((1, 100))))
    return f"{path.name} extended"


def _swap(folder: Path, rng: random.Random) -> str:
    files = _files(folder)
    if len(files) < 2:
        return ""
    one, other = rng.sample(files, 2)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return f"{one.name} and {other.name} swapped"


def _delete(folder: Path, rng: random.Random) -> str:
    path = rng.choice(_files(folder))
    path.unlink()
    return f"{path.name} deleted"


def _add(folder: Path, rng: random.Random) -> str:
    name = rng.choice(("extra.txt", "weights.pkl", "code.py", "adapter_config.json", "body/extra.bin"))
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(rng.choice((b"", b"\x80\x04.", b"{}")))
    return f"{name} added"


def _link(folder: Path, rng: random.Random) -> str:
    path = rng.choice(_files(folder))
    path.unlink()
    os.symlink(rng.choice(("/etc/passwd", "/dev/zero", "/dev/null", str(path))), path)
    return f"{path.name} made a link"


def _json_value(folder: Path, rng: random.Random) -> str:
    """Somewhere in a JSON file, another value, key or depth."""
    path = rng.choice([path for path in _files(folder) if path.suffix == ".json"])
    value = json.loads(path.read_text())
    before = copy.deepcopy(value)
    holder: Any = value
    if not isinstance(value, dict | list) or not value:
        return ""
    key: Any = None
    while True:
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        if not isinstance(holder[key], dict | list) or not holder[key] or rng.random() < 0.3:
            break
        holder = holder[key]
    choice = rng.random()
    if choice < 0.6:
        holder[key] = rng.choice(_HOSTILE)
    elif choice < 0.8 and isinstance(holder, dict):
        holder[rng.choice(_HOSTILE_NAMES)] = holder.pop(key)
    elif isinstance(holder, dict):
        del holder[key]
    if value == before:
        return ""
    text = json.dumps(value)
    if rng.random() < 0.05:
        text = text.replace(":", ": [" * 5000, 1)
    path.write_text(text)
    return f"{path.name}: {key} changed"


def _tensor(folder: Path, rng: random.Random) -> str:
    """A tensor of another shape, type, name or with NaN."""
    import torch
    from safetensors.torch import load_file, save_file

    files = [path for path in _files(folder) if path.suffix == ".safetensors"]
    if not files:
        return ""
    path = rng.choice(files)
    tensors = load_file(path)
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    change = rng.choice(("shape", "type", "name", "nan", "drop", "huge", "negative", "empty"))
    if change == "shape":
        tensors[name] = tensor.reshape(-1)[: max(tensor.numel() // 2, 1)].clone()
    elif change == "type":
        tensors[name] = tensor.to(rng.choice((torch.int64, torch.float16, torch.uint8, torch.float64)))
    elif change == "name":
        tensors[rng.choice(("other", "", "body.x"))] = tensors.pop(name)
    elif change == "nan" and tensor.is_floating_point() and tensor.numel():
        tensor.view(-1)[rng.randrange(tensor.numel())] = float(rng.choice(("nan", "inf", "-inf")))
    elif change == "drop":
        del tensors[name]
    elif change == "huge":
        tensors[name] = (tensor * 1e6).to(tensor.dtype)
    elif change == "negative":
        tensors[name] = (-tensor.float()).to(tensor.dtype) if tensor.dtype != torch.uint8 else 255 - tensor
    elif change == "empty":
        tensors[name] = tensor.reshape(-1)[:0].clone()
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, {"format": "pt"})
    return f"{path.name}: {name}: {change}"


def _header(folder: Path, rng: random.Random) -> str:
    """A safetensors header that lies about size, offsets or types."""
    files = [path for path in _files(folder) if path.suffix == ".safetensors"]
    if not files:
        return ""
    path = rng.choice(files)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    change = rng.choice(("shape", "offsets", "dtype", "length"))
    if change == "shape":
        entry["shape"] = rng.choice(([2**40], [2**32, 2**32], [-1], [0], [1] * 100, "x"))
    elif change == "offsets":
        entry["data_offsets"] = rng.choice(([0, 2**60], [-1, 5], [5, 0], [0], "x"))
    elif change == "dtype":
        entry["dtype"] = rng.choice(("F64", "Q1", "BOOL", ""))
    text = json.dumps(header).encode()
    length = rng.choice((2**63, 2**31, 0, len(text) - 1)) if change == "length" else len(text)
    path.write_bytes(length.to_bytes(8, "little") + text + content[8 + size :])
    return f"{path.name}: header: {change}"


def _onnx(folder: Path, rng: random.Random) -> str:
    """A graph with another shape, weight, name, operator, or weights in another file."""
    import onnx

    path = folder / "model.onnx"
    if not path.exists():
        return ""
    model = onnx.load(path, load_external_data=False)
    change = rng.choice(("external", "dims", "rename", "operator", "nan", "domain", "output", "opset", "drop", "constant"))
    tensor = rng.choice(list(model.graph.initializer) or [onnx.TensorProto()])
    node = rng.choice(list(model.graph.node))
    if change == "external":
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", rng.choice(("/etc/passwd", "../../x", "item_ids.json", "/dev/zero"))
    elif change == "dims" and tensor.dims:
        tensor.dims[0] = rng.choice((0, 1, 2**40, -1, tensor.dims[0] + 1))
    elif change == "rename":
        tensor.name = rng.choice(("", "other"))
    elif change == "operator":
        node.op_type = rng.choice(("Loop", "Nothing", "Identity", "Gather", "Softmax"))
    elif change == "nan" and tensor.raw_data and tensor.data_type == onnx.TensorProto.FLOAT:
        tensor.raw_data = b"\x00\x00\xc0\x7f" + tensor.raw_data[4:]
    elif change == "domain":
        node.domain = rng.choice(("evil", "ai.onnx.ml", "com.microsoft"))
    elif change == "output":
        model.graph.output[0].name = "other"
    elif change == "opset":
        model.opset_import[0].version = rng.choice((0, 1, 999, -1))
    elif change == "drop":
        del model.graph.node[rng.randrange(len(model.graph.node))]
    elif change == "constant":
        for inner in node.attribute:
            inner.i = rng.choice((-1, 2**31, 2**62))
    path.write_bytes(model.SerializeToString())
    return f"model.onnx: {change}"


def _table(folder: Path, rng: random.Random) -> str:
    """A Parquet file with other rows, columns or types."""
    import polars as pl

    files = [path for path in _files(folder) if path.suffix == ".parquet"]
    if not files:
        return ""
    path = rng.choice(files)
    frame = pl.read_parquet(path)
    name = rng.choice(frame.columns)
    change = rng.choice(("drop", "type", "null", "rename", "empty", "repeat"))
    if change == "drop":
        frame = frame.drop(name)
    elif change == "type":
        frame = frame.with_columns(pl.lit(rng.choice(_HOSTILE[1:7])).alias(name))
    elif change == "null":
        frame = frame.with_columns(pl.lit(None).alias(name))
    elif change == "rename":
        frame = frame.rename({name: "other"})
    elif change == "empty":
        frame = frame.head(0)
    elif change == "repeat":
        frame = pl.concat([frame, frame])
    frame.write_parquet(path)
    return f"{path.name}: {name}: {change}"


_DAMAGES = [
    _flip,
    _flip,
    _truncate,
    _extend,
    _swap,
    _delete,
    _add,
    _link,
    _json_value,
    _json_value,
    _tensor,
    _header,
    _onnx,
    _table,
]
