"""What this machine could do at most, and what a request asks of it: the roofline every figure of speed stands under.

A call of n operations over m bytes of weights cannot be quicker than max(n / GEMM rate, m / bandwidth) (Williams et al., 2009).
Operations are multiplications and additions of matrix products, counted in the graph or while PyTorch runs; bytes are those of
the serving files, read once a call. It is an estimate: what activations, masks and top-K cost is left out, small weights may
stay in a cache that is faster than memory, and of a table that is only looked up a few rows are read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recommender.ranking import Recommender

_SIZES = {"cpu": (384, 1536), "cuda": (1536, 8192)}
_COPY_BYTES, _SECONDS = 256 << 20, 0.4
_PRODUCTS = ("MatMul", "Gemm", "MatMulInteger", "FusedMatMul")


def measure_ceilings(num_threads: int) -> dict[str, dict[str, Any]]:
    """The limits of the CPU, on `num_threads`, and of the GPU where PyTorch has one, by the device's name."""
    import torch

    torch.set_num_threads(num_threads)
    return {device: measure_ceiling(device) for device in ("cpu", "cuda") if device == "cpu" or torch.cuda.is_available()}


def measure_ceiling(device: str) -> dict[str, Any]:
    """GEMM operations a second by precision, and bytes a second of a large copy (read and written)."""
    import torch

    wait, sizes = torch.cuda.synchronize if device == "cuda" else lambda: None, _SIZES[device]
    rates = {}
    kinds = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
    for name, dtype in (kinds | ({"tf32": torch.float32} if device == "cuda" else {})).items():
        product = torch._int_mm if dtype == torch.int8 else torch.mm
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        for size in sizes:
            one, other = ((torch.rand(size, size, device=device) * 9).to(dtype) for _ in range(2))
            if dtype == torch.int8 and device == "cuda":
                other = other.t()  # the layout that its kernels are for
            try:
                seconds = _quickest(lambda product=product, one=one, other=other: product(one, other), wait)
            except (RuntimeError, NotImplementedError):
                break  # a precision this build has no kernel for
            rates[name] = 2 * size**3 / seconds
            if seconds * (sizes[-1] / size) ** 3 > 1:
                break  # nor a fast one: a larger product would take long and tell no more
    source, target = (torch.full((_COPY_BYTES,), value, dtype=torch.uint8, device=device) for value in (1, 0))
    return {"gemm_per_s": rates, "bytes_per_s": 2 * _COPY_BYTES / _quickest(lambda: target.copy_(source), wait)}


def operations_of_graph(graph: Path, batch: int, length: int) -> int:
    """Operations of one call of an ONNX graph for histories int64[batch, length]."""
    import onnx
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    model = onnx.load(graph)
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (batch, length), strict=True):
        dim.ClearField("dim_param")
        dim.dim_value = size
    model = SymbolicShapeInference.infer_shapes(model, auto_merge=True)
    assert model is not None
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    total = 0
    for node in model.graph.node:
        if node.op_type in _PRODUCTS:
            total += 2 * int(np.prod(shapes[node.output[0]])) * shapes[node.input[0]][-1]
        elif node.op_type == "MatMulNBits":
            sizes = {attribute.name: attribute.i for attribute in node.attribute}
            total += 2 * int(np.prod(shapes[node.input[0]][:-1])) * sizes["K"] * sizes["N"]
    return total


def operations_in_torch(recommender: Recommender, history_BL: np.ndarray, k: int) -> int:
    """Operations of one call that PyTorch runs."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        recommender.recommend(history_BL, k)
    return counter.get_total_flops()


def share_of_limit(call_s: float, operations: int, num_bytes: int, precision: str, ceiling: Mapping[str, Any]) -> float | None:
    """Shortest time of a call by the device's limits over the measured one; None where it has no rate for the precision."""
    rate = ceiling["gemm_per_s"].get(_computes_in(precision))
    return max(operations / rate, num_bytes / ceiling["bytes_per_s"]) / call_s if rate else None


def _computes_in(precision: str) -> str:
    """`int8 weights, bf16` computes in bf16; int4 weights are multiplied as int8 (accuracy level 4), and so is int8-qdq."""
    last = precision.split(", ")[-1]
    return "int8" if last in ("int4", "int8-qdq") else last


def _quickest(run: Callable[[], Any], wait: Callable[[], Any]) -> float:
    """Seconds of the quickest of the runs that fit into a moment, the first left out; `wait` returns when one has ended."""
    run()
    wait()
    best, until = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < until:
        started = time.perf_counter()
        run()
        wait()
        best = min(best, time.perf_counter() - started)
    return best
