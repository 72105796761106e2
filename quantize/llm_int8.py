"""LLM.int8() for the teacher's body (Dettmers et al., 2022): int8 weights per output row, outlier features kept apart."""

from __future__ import annotations

from transformers import BitsAndBytesConfig


def config() -> BitsAndBytesConfig:
    """What bitsandbytes is asked for."""
    return BitsAndBytesConfig(load_in_8bit=True)
