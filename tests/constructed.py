"""Constructed data and models with known answers, small enough to run everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl

from export.config import GraphInput
from foundation.artifact import Artifact, Draft, make
from recommender.runtimes.base import GRAPH, ITEM_IDS

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
    """A random-weight LLM with a tokenizer, saved as transformers reads it: "llama", "qwen3", "bert" or "roberta"."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModel, BertConfig, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config, RobertaConfig

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
        "roberta": lambda: RobertaConfig(**shape, pad_token_id=1),
    }
    torch.manual_seed(0)
    AutoModel.from_config(configs[architecture]()).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)
    return folder


def make_served_graph(out: Path, num_items: int, k: int, inputs: list[GraphInput]) -> Artifact:
    """A random student's graph as an "onnx" artefact, for servers: items are called sku-1, sku-2, …"""
    import torch

    from export.graph import ServingGraph
    from export.onnx_graph import write_graph
    from recommender.config import StudentSection
    from recommender.student import Student

    def build(draft: Draft) -> None:
        torch.manual_seed(0)
        section = StudentSection(hidden_size=16, num_layers=1, max_length=10)
        student = Student(section, num_items, torch.randn(num_items + 1, 6)).eval()
        write_graph(ServingGraph(student, k), inputs, 21, "", draft.path / GRAPH)
        (draft.path / ITEM_IDS).write_text(json.dumps([f"sku-{number}" for number in range(1, num_items + 1)]))
        draft.metrics["num_parameters"] = student.num_parameters

    return make(out, "onnx", recipe={}, inputs={}, build=build)
