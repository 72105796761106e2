"""int8 weights and activations: weights quantized ahead (symmetric), activations at run time, per tensor.

ONNX Runtime's `quantize_dynamic` (MatMulInteger), over every matrix product with constant weights, the scoring product among
them, and over the look-up in the item table. Weights take 7 of the 8 bits by default: processors with AVX2 but no VNNI add two
products of 8 bits in 16, which saturates, and the same graph would rank differently from machine to machine.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from quantize.config import QuantizeSection
from quantize.item_table import other_gathers, untie_item_table


def quantize(model: onnx.ModelProto, section: QuantizeSection, calibration: list[dict[str, np.ndarray]]) -> onnx.ModelProto:
    """`model` with int8 matrix products and item table."""
    untied = untie_item_table(model)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "int8.onnx"
        quantize_dynamic(
            untied,
            out,
            op_types_to_quantize=["MatMul", "Gather"],
            per_channel=section.int8_per_channel,
            weight_type=QuantType.QInt8,
            reduce_range=section.int8_reduce_range,
            nodes_to_exclude=other_gathers(untied),
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(out)
