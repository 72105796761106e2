"""Fixtures shared by the tests: a planted dataset and its sequences, made once."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tiny models are faster on one thread

from pathlib import Path

import pytest

from foundation.artifact import Artifact, make
from recommender.cleaning import write_dataset
from recommender.data import load_dataset, read_tables
from recommender.split import Sequences, build_sequences
from tests.constructed import write_chain_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The planted dataset as an artefact."""
    folder = tmp_path_factory.mktemp("data")
    source = write_chain_dataset(folder / "chain", num_users=200)
    return make(
        folder / "dataset", "dataset", recipe={}, inputs={}, build=lambda draft: write_dataset(read_tables(source), draft, 0.0)
    )


@pytest.fixture(scope="session")
def sequences(dataset: Artifact) -> Sequences:
    return build_sequences(load_dataset(dataset))


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A random two-layer Llama as an "llm" artefact."""
    return make_llm(tmp_path_factory.mktemp("llm"), "llama")


def make_llm(folder: Path, architecture: str) -> Artifact:
    """A random LLM of `architecture` as an "llm" artefact."""
    from distill.llm import build_llm
    from tests.constructed import write_tiny_llm

    source = write_tiny_llm(folder / "source", architecture)
    return make(
        folder / "llm", "llm", recipe={"llm": str(source)}, inputs={}, build=lambda draft: build_llm(str(source), draft)
    )
