"""The table of quantizers. One file, one method, one entry here.

A graph method turns an exported ONNX model into another one; an LLM method turns a teacher into a smaller teacher. Module
paths, so that reading the table imports neither ONNX nor torch.
"""

GRAPH_METHODS = {"int8": "quantize.dynamic_int8", "int4": "quantize.weight_only_int4"}
LLM_METHODS = {"int8": "quantize.llm_int8", "nf4": "quantize.llm_nf4"}
