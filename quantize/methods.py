"""The table of quantizers. One file, one method, one entry here.

A graph method turns an exported ONNX model into another one; an LLM method turns a teacher into a smaller teacher. Module
paths, so that reading the table imports neither ONNX nor torch.
"""

GRAPH_METHODS = {
    "int8": "quantize.dynamic_int8",
    "int4": "quantize.weight_only_int4",
    "int8-qdq": "quantize.static_int8",
    "int4-qdq": "quantize.block_int4",
    "fp8-qdq": "quantize.static_fp8",
}
SERVED_METHODS = ("int8", "int4", "int8-qdq")  # made by `make quantize` and measured: ONNX Runtime has kernels for them
ENGINE_METHODS = {"int8": "int8-qdq", "int4": "int4-qdq", "fp8": "fp8-qdq"}  # standard operators only, as TensorRT wants them
LLM_METHODS = {"int8": "quantize.llm_int8", "nf4": "quantize.llm_nf4"}
