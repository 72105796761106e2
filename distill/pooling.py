"""What an LLM says of a text: hidden states after some of its layers, averaged over the text's tokens.

Shapes: B texts, T tokens (padded at their end), D the LLM's width, C = len(layers) D.

States between the first layer and the last pass through the body's final norm as well: without it the first token's, hundreds
of times larger than the others', would be all that is left of a mean (compare the logit lens). Encoders like BERT have no final
norm: every layer's output is normed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distill.llm import ENCODERS, TeacherError, load_body
from foundation.artifact import Artifact

ALL = -1
_FINAL_NORMS = ("norm", "ln_f", "norm_f", "final_layernorm", "final_layer_norm")


def load_pooled_body(llm: Artifact, layers: Sequence[int], **kwargs: Any) -> Any:
    """The LLM's body, as deep as `layers` need it."""
    depth = llm.metrics["num_layers"]
    if too_deep := [layer for layer in layers if layer > depth]:
        raise ValueError(f"text.layers = {list(layers)} names {too_deep[0]}, but the LLM has {depth}; -1 takes all of them")
    body = load_body(llm, 0 if ALL in layers else max(layers), **kwargs).eval()
    if len(layers) > 1 and _final_norm(body) is None and body.config.model_type not in ENCODERS:
        raise TeacherError(
            f"text.layers = {list(layers)}: {type(body).__name__} has no final norm named {', '.join(_FINAL_NORMS)} for the "
            "states in between; name one layer, or take another LLM"
        )
    return body


def _final_norm(body: nn.Module) -> nn.Module | None:
    return next((getattr(body, name) for name in _FINAL_NORMS if hasattr(body, name)), None)


def pooled(body: Any, layers: Sequence[int], token_BT: Tensor, mask_BT: Tensor, pad_mask: bool = True) -> Tensor:
    """float32[B, C]. A causal body does not see what follows, so that without `pad_mask` it is spared the mask."""
    options: dict[str, Any] = {"attention_mask": mask_BT} if pad_mask else {}
    found = body(input_ids=token_BT, use_cache=False, output_hidden_states=len(layers) > 1, **options)
    deepest = body.config.num_hidden_layers
    norm = _final_norm(body) or nn.Identity()
    weight_BT1 = mask_BT[..., None].float()
    weight_BT1 = weight_BT1 / weight_BT1.sum(1, keepdim=True)
    states = [found.last_hidden_state if layer in (ALL, deepest) else norm(found.hidden_states[layer]) for layer in layers]
    return torch.cat([(state_BTD.float() * weight_BT1).sum(1) for state_BTD in states], dim=-1)
