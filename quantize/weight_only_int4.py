"""4-bit weights, blocks of them sharing a scale (symmetric round to nearest); activations stay as they are.

ONNX Runtime's MatMulNBits and GatherBlockQuantized (com.microsoft), over every matrix product with constant weights and over
the look-up in the item table.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from quantize.config import QuantizeSection
from quantize.item_table import other_gathers, untie_item_table


def quantize(model: onnx.ModelProto, section: QuantizeSection, calibration: list[dict[str, np.ndarray]]) -> onnx.ModelProto:
    """`model` with 4-bit weights."""
    untied = untie_item_table(model)
    quantizer = MatMulNBitsQuantizer(
        untied,
        block_size=section.int4_block_size,
        is_symmetric=True,
        accuracy_level=section.int4_accuracy_level or None,
        nodes_to_exclude=other_gathers(untied),
        op_types_to_quantize=("MatMul", "Gather"),
        quant_axes=(("MatMul", 0), ("Gather", 1)),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "invalid value encountered in divide")  # the padding row's scale is 0
        quantizer.process()
    quantized: Any = quantizer.model
    return quantized.model
