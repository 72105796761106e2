"""fp8 (E4M3) weights and activations with scales fixed ahead (Q/DQ), for TensorRT on GPUs that have the type (sm89 and later).

One scale per matrix. The table that is looked up stays float, for ONNX's Gather takes no fp8; the scoring product is fp8.
On a CPU such a graph runs node by node only (`onnxruntime-plain`), which judges it.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType

from quantize.config import QuantizeSection
from quantize.static_qdq import quantize_qdq


def quantize(model: onnx.ModelProto, section: QuantizeSection, calibration: list[dict[str, np.ndarray]]) -> onnx.ModelProto:
    """`model` with fp8 matrix products."""
    return quantize_qdq(
        model,
        calibration,
        ["MatMul", "Gemm"],
        activation_type=QuantType.QFLOAT8E4M3FN,
        weight_type=QuantType.QFLOAT8E4M3FN,
        calibrate_method=CalibrationMethod.Distribution,
    )
