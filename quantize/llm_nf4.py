"""NF4 for the teacher's body (QLoRA; Dettmers et al., 2023): 4-bit normal-float weights, blocks of 64, absmax scales."""

from __future__ import annotations

import torch
from transformers import BitsAndBytesConfig


def config() -> BitsAndBytesConfig:
    """What bitsandbytes is asked for; it computes in bf16."""
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
