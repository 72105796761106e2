"""4-bit weights for TensorRT: blocks that share a scale, as DequantizeLinear of the ONNX standard (opset 21).

The same numbers as `weight_only_int4.py`, whose operators only ONNX Runtime knows. The table that is looked up stays float; the
scoring product is 4-bit.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantFormat
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from quantize.config import QuantizeSection
from quantize.item_table import untie_item_table


def quantize(model: onnx.ModelProto, section: QuantizeSection, calibration: list[dict[str, np.ndarray]]) -> onnx.ModelProto:
    """`model` with 4-bit matrix products."""
    quantizer = MatMulNBitsQuantizer(
        untie_item_table(model),
        block_size=section.int4_block_size,
        is_symmetric=True,
        accuracy_level=None,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=("MatMul",),
        quant_axes=(("MatMul", 0),),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "invalid value encountered in divide")  # the padding row's scale is 0
        quantizer.process()
    quantized: Any = quantizer.model
    return quantized.model
