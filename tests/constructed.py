"""Constructed data and models with known answers, small enough to run everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

NUM_ITEMS = 60


def write_chain_dataset(folder: Path, num_users: int = 400, length: int = 12, noise: float = 0.1, seed: int = 0) -> Path:
    """A dataset folder with a planted pattern: after item i comes item i + 1 (modulo NUM_ITEMS), but for `noise` jumps.

    A model that learns it ranks the next item first in (1 - noise) of the cases; popularity is flat and knows nothing.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        item = int(rng.integers(NUM_ITEMS))
        for step in range(length):
            rows.append((f"u{user:04d}", f"i{item:02d}", 1_000_000 + step))
            item = int(rng.integers(NUM_ITEMS)) if rng.random() < noise else (item + 1) % NUM_ITEMS
    folder.mkdir(parents=True)
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(folder / "interactions.parquet")
    items = [
        {"item_id": f"i{i:02d}", "title": f"thing {i}", "categories": [f"group {i // 10}"], "year": 1990 + i % 10}
        for i in range(NUM_ITEMS)
    ]
    pl.DataFrame(items).write_parquet(folder / "items.parquet")
    return folder


def write_tiny_llm(folder: Path, architecture: str = "llama", num_layers: int = 2) -> Path:
    """A random-weight LLM with a tokenizer, saved as transformers reads it: "llama", "qwen3" or "bert"."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModel, BertConfig, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

    words = ["<unk>", "<pad>", "thing", "group", "(", ")", ".", ",", *map(str, range(100)), *map(str, range(1990, 2000))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    shape = {
        "vocab_size": len(words),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 2,
    }
    configs = {
        "llama": lambda: LlamaConfig(**shape, num_key_value_heads=1, pad_token_id=1),
        "qwen3": lambda: Qwen3Config(**shape, num_key_value_heads=1, head_dim=32, pad_token_id=1),
        "bert": lambda: BertConfig(**shape, pad_token_id=1),
    }
    torch.manual_seed(0)
    AutoModel.from_config(configs[architecture]()).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)
    return folder
