"""Items as the text they have: the other way into the LLM, without any ID (compare P5, TALLRec, GenRec).

Shapes: B batch, L length, T tokens an item at most, D the LLM's width, I items (row 0 is padding).

A history becomes the texts of its items, one after the other; the state after an item's last token, a separator, is what the
model holds after that item. So one pass still gives a training signal at every position, at T times the tokens of soft items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.llm import first_position, load_tokenizer
from foundation.artifact import Artifact

NONE = -1  # no token


def item_tokens(llm: Artifact, prompts: Sequence[str], max_tokens: int) -> np.ndarray:
    """The tokens of every item's text, cut to leave room for the separator, int64[len(prompts) + 1, max_tokens]."""
    tokenizer = load_tokenizer(llm)
    line_end = tokenizer("\n", add_special_tokens=False)["input_ids"]
    separator = line_end[-1] if line_end else tokenizer.pad_token_id
    tokens_IT = np.full((len(prompts) + 1, max_tokens), NONE, np.int64)
    for row, tokens in zip(tokens_IT[1:], tokenizer(list(prompts), add_special_tokens=False)["input_ids"], strict=True):
        kept = [*tokens[: max_tokens - 1], separator]
        row[: len(kept)] = kept
    return tokens_IT


def read_texts(body: Any, tokens_IT: Tensor, history_BL: Tensor) -> Tensor:
    """Hidden state after each item of histories that are padded at their end, float[B, L, D]; anything where there is none."""
    token_BLT = tokens_IT[history_BL]
    known_BLT = token_BLT != NONE
    known_BX = known_BLT.flatten(1)
    known_BX = torch.cat([torch.ones_like(known_BX[:, :1]), known_BX[:, 1:]], dim=1)  # an empty history attends to something
    hidden_BXD = body(
        inputs_embeds=body.get_input_embeddings()(token_BLT.flatten(1).clamp(min=0)),
        attention_mask=known_BX.long(),
        position_ids=(known_BX.cumsum(1) - 1).clamp(min=0) + first_position(body),
    ).last_hidden_state
    last_BL11 = (known_BLT.sum(-1) - 1).clamp(min=0)[..., None, None]
    hidden_BLTD = hidden_BXD.unflatten(1, token_BLT.shape[1:])
    return hidden_BLTD.gather(2, last_BL11.expand(-1, -1, 1, hidden_BLTD.shape[-1]))[:, :, 0]
