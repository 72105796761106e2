"""The item table inside an exported graph: one initializer, read by a Gather and, transposed, by the scoring product.

Quantizers look for matrix products with a constant right-hand side and store rows and columns differently, so the table is
given to them as two constants.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper


def untie_item_table(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in which Transposes of constants are constants of their own."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    del model.graph.value_info[:]  # quantizers infer shapes anew, and stumble over those of what they replaced
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Transpose" and node.input[0] in constants]:
        perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
        value = np.ascontiguousarray(np.transpose(numpy_helper.to_array(constants[node.input[0]]), perm))
        model.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        model.graph.node.remove(node)
    return model


def item_table_name(model: onnx.ModelProto) -> str:
    """The initializer that is looked up by the history: the largest one a Gather reads."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    gathered = [node.input[0] for node in model.graph.node if node.op_type == "Gather" and node.input[0] in sizes]
    if not gathered:
        raise ValueError("the graph looks nothing up in a constant table; was it made by `recdistill export`?")
    return max(gathered, key=sizes.__getitem__)


def other_gathers(model: onnx.ModelProto) -> list[str]:
    """Names of the Gather nodes that read no table with a row for each item (small look-ups not worth quantizing)."""
    rows = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if tensor.dims}
    num_rows = rows[item_table_name(model)]
    return [node.name for node in model.graph.node if node.op_type == "Gather" and rows.get(node.input[0]) != num_rows]
