"""Q/DQ graphs: quantize and dequantize nodes around every matrix product with constant weights, scales fixed ahead.

Symmetric on both sides (zero point 0), as TensorRT asks; the scales of activations come from calibration histories. What a
product gives stays float: rounding the scores themselves would cost most. Standard operators only, so that one graph serves
ONNX Runtime and TensorRT. Shared by `static_int8.py` and `static_fp8.py`.
"""

from __future__ import annotations

import logging
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from quantize.item_table import other_gathers, untie_item_table


class _Histories(CalibrationDataReader):
    """The batches that calibration runs."""

    def __init__(self, batches: list[dict[str, np.ndarray]]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
        return next(self.batches, None)


def quantize_qdq(
    model: onnx.ModelProto, calibration: list[dict[str, np.ndarray]], op_types: list[str], **options: Any
) -> onnx.ModelProto:
    """`model` with Q/DQ nodes around `op_types`, by ONNX Runtime's `quantize_static`; `calibration` are feeds of the graph."""
    untied = untie_item_table(model)
    extra: dict[str, Any] = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "MatMulConstBOnly": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": op_types,  # scores of 8 bits would tie
    }
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):  # its calibrators print
        source, out = Path(folder) / "float.onnx", Path(folder) / "qdq.onnx"
        onnx.save(untied, source)
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.ERROR)  # advice on graphs that were not preprocessed
        try:
            quantize_static(
                source,
                out,
                _Histories(calibration),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=op_types,
                nodes_to_exclude=other_gathers(untied),
                extra_options=extra,
                **options,
            )
        finally:
            root.setLevel(level)
        return onnx.load(out)
