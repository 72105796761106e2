"""Item text vectors: the LLM's hidden states, averaged over an item's prompt, and their principal components.

Shapes: I items (row 0 is padding and zero), D the LLM's width times the layers that are read, Z = `student_dims`.

The teacher gets the standardised vectors, the student the first Z principal components, scaled to unit mean variance. With
`text.whiten` each has unit variance (Zhang et al., 2024: WhitenRec): a few directions hold most of what an LLM's vectors vary
by, and little of what tells items apart. Mean and components are kept, so that a new item's vectors are computed the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors.numpy import load_file, save_file

from distill.config import TextSection
from distill.device import compute_dtype, device
from distill.llm import load_tokenizer, require_room
from distill.pooling import load_pooled_body, pooled
from distill.words import word_vectors
from foundation import console
from foundation.artifact import Artifact, Draft, opens, replace_durably
from recommender.prompt import prompt_of

VECTORS = "vectors.safetensors"
_CHUNK_BATCHES = 8
_LEAST_DEVIATION = 1e-2  # of a component over the first one's; what varies less is taken as rounding, and raised no further


def build_text(llm: Artifact, items: pl.DataFrame, section: TextSection, draft: Draft) -> None:
    """Encode every item (resumable by chunks) and fit the projection."""
    prompts = prompts_of(items, section)
    if len(set(prompts)) == 1:
        console.say("warning: every item has the same text; control-text and the teacher learn nothing from it")
    by_words = section.encoder == "words"
    vectors_ID = (
        word_vectors(prompts, section.student_dims)[1:]
        if by_words
        else _encode_resumably(llm, prompts, section, draft.checkpoint)
    )
    mean_D, std_D = mean_and_deviation(vectors_ID)
    standard_ID = (vectors_ID - mean_D) / std_D
    projection_DZ = _principal_components(standard_ID, section.student_dims, section.whiten)
    if projection_DZ.shape[1] < section.student_dims:
        console.say(
            f"warning: there are {projection_DZ.shape[1]} components, fewer than text.student_dims = {section.student_dims}"
        )
    tensors = {"mean": mean_D, "std": std_D, "projection": projection_DZ}
    save_file(tensors | {"vectors": np.concatenate([np.zeros_like(standard_ID[:1]), standard_ID])}, draft.path / VECTORS)
    draft.metrics |= {"num_items": len(prompts), "dims": vectors_ID.shape[1], "student_dims": projection_DZ.shape[1]}


def prompts_of(items: pl.DataFrame, section: TextSection) -> list[str]:
    """What the LLM reads of each item."""
    return [prompt_of(row, section.prompt) for row in items.iter_rows(named=True)]


def mean_and_deviation(vectors_ID: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each dimension, by which vectors are standardised: float32[D], float32[D]."""
    std_D = vectors_ID.std(axis=0)
    std_D += 1e-3 * np.abs(vectors_ID).mean() + 1e-6  # rounding of dimensions that hardly vary must not become a feature
    return vectors_ID.mean(axis=0), std_D


def encode(llm: Artifact, prompts: list[str], section: TextSection, precision: str = "auto") -> np.ndarray:
    """Mean-pooled hidden states after `section.layers`, computed in `precision` (`compute_dtype`), float32[len(prompts), D]."""
    return np.concatenate(list(_encode_chunks(llm, prompts, section, 0, precision)))


@opens
def encode_new(text: Artifact, llm: Artifact, items: pl.DataFrame, precision: str = "auto") -> np.ndarray:
    """What a student reads of new items, float32[len(items), Z]; `precision` "auto" is what suits this machine's hardware."""
    section = TextSection.model_validate(text.recipe["text"])
    fitted = load_file(text.file(VECTORS))
    vectors_ND = encode(llm, prompts_of(items, section), section, precision)
    return (vectors_ND - fitted["mean"]) / fitted["std"] @ fitted["projection"]


@opens
def load_text(artifact: Artifact) -> tuple[np.ndarray, np.ndarray]:
    """(standardised vectors float32[I + 1, D], student vectors float32[I + 1, Z])."""
    tensors = load_file(artifact.file(VECTORS))
    num_items = artifact.metrics["num_items"]
    if tensors["vectors"].ndim != 2 or len(tensors["vectors"]) != num_items + 1:
        raise ValueError(f"its vectors have the shape {tensors['vectors'].shape}, there are {num_items} items and padding")
    return tensors["vectors"], tensors["vectors"] @ tensors["projection"]


@opens
def text_basis(artifact: Artifact) -> np.ndarray:
    """What takes standardised vectors to what the student reads, float32[D, Z]."""
    return load_file(artifact.file(VECTORS))["projection"]


def _encode_resumably(llm: Artifact, prompts: list[str], section: TextSection, checkpoint: Path) -> np.ndarray:
    chunks, start = [], 0
    while (path := checkpoint / f"chunk-{start:09d}.safetensors").exists():  # named by its first row: a gap ends the run
        chunks.append(load_file(path)["vectors"])
        start += len(chunks[-1])
    if start < len(prompts):
        for chunk in _encode_chunks(llm, prompts, section, start, "auto"):
            aside = checkpoint / "chunk.tmp"
            save_file({"vectors": chunk}, aside)
            replace_durably(aside, checkpoint / f"chunk-{start:09d}.safetensors")
            chunks.append(chunk)
            start += len(chunk)
    return np.concatenate(chunks)


@torch.no_grad()
def _encode_chunks(llm: Artifact, prompts: list[str], section: TextSection, start: int, precision: str) -> Iterator[np.ndarray]:
    """Yield vectors of `prompts[start:]` in order, in chunks of several batches sorted by length within."""
    tokenizer = load_tokenizer(llm)
    body = load_pooled_body(llm, section.layers, dtype=compute_dtype(precision)).to(device())
    require_room(body, section.max_tokens, "text.max_tokens")
    chunk_size = section.batch_size * _CHUNK_BATCHES
    for first in console.progress(range(start, len(prompts), chunk_size), "item text vectors"):
        chunk = prompts[first : first + chunk_size]
        vectors = np.empty((len(chunk), len(section.layers) * body.config.hidden_size), np.float32)
        order = np.argsort([len(prompt) for prompt in chunk], kind="stable")
        for rows in np.split(order, range(section.batch_size, len(chunk), section.batch_size)):
            options = {"padding": True, "truncation": True, "max_length": section.max_tokens, "return_tensors": "pt"}
            tokens = tokenizer([chunk[r] for r in rows], **options).to(device())
            vectors[rows] = pooled(body, section.layers, tokens["input_ids"], tokens["attention_mask"]).cpu().numpy()
        yield vectors


def _principal_components(standard_ID: np.ndarray, dims: int, whiten: bool) -> np.ndarray:
    """What takes standardised vectors to their first `dims` principal components, float32[D, Z]."""
    _, singular, components = np.linalg.svd(standard_ID, full_matrices=False)
    std_Z = singular[:dims] / np.sqrt(len(standard_ID))
    scale_Z = np.maximum(std_Z, _LEAST_DEVIATION * std_Z[0]) if whiten else np.sqrt((std_Z**2).mean())
    return np.ascontiguousarray(components[:dims].T / (scale_Z + 1e-6), np.float32)
