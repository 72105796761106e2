"""The exported text encoder: texts to the vectors of new items, and of the `query` input of a graph.

Needs ONNX Runtime, numpy and tokenizers, neither torch nor the LLM. `export/text_encoder.py` writes its folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from recommender.prompt import prompt_of

ENCODER, TOKENIZER, SETTINGS = "encoder.onnx", "tokenizer.json", "encoder.json"
TOKENS, MASK, VECTOR = "tokens", "mask", "vector"
_BATCH = 32


class TextEncoder:
    """tokens and mask int64[B, L], padded behind, to text vectors float32[B, Z]."""

    def __init__(self, folder: Path, num_threads: int = 0) -> None:
        settings = json.loads((folder / SETTINGS).read_bytes())
        self.prompt: str = settings["prompt"]
        self.tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self.tokenizer.enable_truncation(settings["max_tokens"])
        self.tokenizer.enable_padding(pad_id=settings["pad_id"])
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = num_threads, 3
        self.session = ort.InferenceSession(str(folder / ENCODER), options, providers=["CPUExecutionProvider"])
        self.dims: int = self.session.get_outputs()[0].shape[1]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32[len(texts), Z]; a text without a token is the zero vector, which says nothing."""
        vectors_NZ = np.zeros((len(texts), self.dims), np.float32)
        by_length = sorted((row for row, text in enumerate(texts) if text.strip()), key=lambda row: len(texts[row]))
        for start in range(0, len(by_length), _BATCH):
            rows = by_length[start : start + _BATCH]
            encoded = self.tokenizer.encode_batch([texts[row] for row in rows])
            feeds = {
                TOKENS: np.array([entry.ids for entry in encoded], np.int64),
                MASK: np.array([entry.attention_mask for entry in encoded], np.int64),
            }
            vectors_NZ[rows] = np.asarray(self.session.run([VECTOR], feeds)[0])
        return vectors_NZ

    def encode_items(self, items: Iterable[Mapping[str, Any]]) -> np.ndarray:
        """The same of items by their fields (title, categories, …), put into the prompt of the catalogue's items."""
        return self.encode([prompt_of(row, self.prompt) for row in items])
