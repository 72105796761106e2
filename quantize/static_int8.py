"""int8 weights and activations with scales fixed ahead (Q/DQ, symmetric S8S8), for ONNX Runtime and TensorRT alike.

The item table is int8 as well, both where it is looked up and in the scoring product. Activations are scaled by the largest
value that calibration saw.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType

from quantize.config import QuantizeSection
from quantize.static_qdq import quantize_qdq


def quantize(model: onnx.ModelProto, section: QuantizeSection, calibration: list[dict[str, np.ndarray]]) -> onnx.ModelProto:
    """`model` with int8 matrix products and item table."""
    return quantize_qdq(
        model,
        calibration,
        ["MatMul", "Gemm", "Gather"],
        per_channel=section.int8_per_channel,
        reduce_range=section.int8_reduce_range,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )
