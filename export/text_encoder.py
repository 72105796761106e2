"""Stage: the text encoder as an ONNX graph of its own, with its tokenizer, for services that run no torch.

From tokens to what the student reads of an item: the LLM's first layers, the mean over the text, the projection that was fitted
to the catalogue (`distill/text.py`). Weights are 8-bit in blocks that share a scale (MatMulNBits of ONNX Runtime), the table of
token vectors 16-bit, activations float: in a few dimensions an LLM's states are a hundred times larger than in others, and one
8-bit scale for all of them loses the rest (see docs/log.md). Before it is kept, its vectors are compared with PyTorch's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import polars as pl
import torch
from onnx import helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.config import TextSection
from distill.llm import load_tokenizer
from distill.pooling import load_pooled_body, pooled
from distill.text import VECTORS, encode_new
from export.config import TextEncoderSection
from export.parity import ParityError
from export.to_onnx import to_onnx
from foundation.artifact import Artifact, Draft, opens
from quantize.item_table import item_table_name
from recommender.runtimes.text_encoder import ENCODER, MASK, SETTINGS, TOKENIZER, TOKENS, VECTOR, TextEncoder

_MAX_BYTES = 2_000_000_000  # of a protobuf message, less what is not weights
_OPSET, _COMPARED_ITEMS = 21, 200


class PooledLLM(nn.Module):
    """tokens and mask int64[B, L] to text vectors float32[B, Z]."""

    mean: Tensor
    projection: Tensor

    def __init__(self, body: nn.Module, layers: Sequence[int], fitted: dict[str, Tensor]) -> None:
        super().__init__()
        self.body, self.layers = body, layers
        self.register_buffer("mean", fitted["mean"])
        self.register_buffer("projection", fitted["projection"] / fitted["std"][:, None])

    def forward(self, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
        return (pooled(self.body, self.layers, tokens_BL, mask_BL) - self.mean) @ self.projection


@opens
def open_text_encoder(artifact: Artifact) -> TextEncoder:
    """Open what `build_text_encoder` wrote, verified, and see that it answers."""
    artifact.verify()
    encoder = TextEncoder(artifact.path)
    encoder.encode(["item"])
    return encoder


def build_text_encoder(text: Artifact, llm: Artifact, items: pl.DataFrame, section: TextEncoderSection, draft: Draft) -> None:
    """Export, quantize and compare with PyTorch on items of the catalogue."""
    encoded = TextSection.model_validate(text.recipe["text"])
    body = load_pooled_body(llm, encoded.layers, attn_implementation="eager")
    size = sum(parameter.numel() * 4 for parameter in body.parameters())
    if size > _MAX_BYTES:
        raise ValueError(
            f"the text encoder has {size / 1e9:.1f} GB of weights, an ONNX file holds 2: take fewer layers (text.layers) or a "
            "smaller teacher.llm"
        )
    tokenizer = load_tokenizer(llm)
    if not tokenizer.is_fast:
        raise ValueError("this LLM's tokenizer has no tokenizer.json form; take an LLM with a fast tokenizer")
    (draft.path / TOKENIZER).write_text(tokenizer.backend_tokenizer.to_str())
    settings = {"prompt": encoded.prompt, "max_tokens": encoded.max_tokens, "pad_id": tokenizer.pad_token_id}
    (draft.path / SETTINGS).write_text(json.dumps(settings, indent=1))
    model = _export(PooledLLM(body, encoded.layers, load_file(text.file(VECTORS))), {"recdistill.text": text.digest})
    if section.precision == "int8":
        model = _quantized(model, section.block_size)
    onnx.save(model, draft.path / ENCODER)
    sample = items.sample(min(_COMPARED_ITEMS, items.height), seed=0)
    expected_NZ = encode_new(text, llm, sample, "fp32")  # bf16 rounds more than a right graph of 8 bits may
    found = similarity(expected_NZ, TextEncoder(draft.path).encode_items(sample.iter_rows(named=True)))
    if found["cosine_min"] < section.min_cosine:
        raise ParityError(
            f"the text encoder's vectors have a cosine with PyTorch's down to {found['cosine_min']:.4f}, below "
            f"export.text_encoder.min_cosine = {section.min_cosine}"
        )
    draft.metrics |= {
        "precision": section.precision,
        "num_parameters": sum(parameter.numel() for parameter in body.parameters()),
        "dims": model.graph.output[0].type.tensor_type.shape.dim[1].dim_value,
        "compared_items": sample.height,
        **found,
    }


def similarity(expected_NZ: np.ndarray, found_NZ: np.ndarray) -> dict[str, float]:
    """Mean and least cosine of vectors with what they should be."""
    norm_N = np.linalg.norm(expected_NZ, axis=1) * np.linalg.norm(found_NZ, axis=1)
    cosine_N = (expected_NZ * found_NZ).sum(axis=1) / norm_N.clip(1e-12)
    return {"cosine_mean": float(cosine_N.mean()), "cosine_min": float(cosine_N.min())}


def _export(module: PooledLLM, properties: dict[str, str]) -> onnx.ModelProto:
    sizes = {0: torch.export.Dim("batch", max=65536), 1: torch.export.Dim("length", max=65536)}
    request = {name: torch.ones(3, 7, dtype=torch.long) for name in ("tokens_BL", "mask_BL")}
    return to_onnx(module, request, dict.fromkeys(request, sizes), ((TOKENS, MASK), (VECTOR,)), _OPSET, properties)


def _quantized(model: onnx.ModelProto, block_size: int) -> onnx.ModelProto:
    config = DefaultWeightOnlyQuantConfig(block_size=block_size, is_symmetric=True, bits=8, op_types_to_quantize=("MatMul",))
    quantizer = MatMulNBitsQuantizer(model, algo_config=config)
    quantizer.process()
    quantized: Any = quantizer.model
    return _with_half_lookup(quantized.model)


def _with_half_lookup(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with the table of token vectors in 16 bits; what is looked up is cast back."""
    name = item_table_name(model)
    node = next(node for node in model.graph.node if node.op_type == "Gather" and node.input[0] == name)
    table = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table).astype(np.float16), name))
    cast = helper.make_node("Cast", [f"{name}_half"], [node.output[0]], name=f"{name}_cast", to=onnx.TensorProto.FLOAT)
    node.output[0] = f"{name}_half"
    model.graph.node.insert(list(model.graph.node).index(node) + 1, cast)
    return model
