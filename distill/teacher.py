"""The teacher: an LLM that reads items as soft tokens and scores the catalogue.

Shapes: B batch, L length, D the LLM's width, E item vector size, I items (index 0 is padding), Z text dimensions.

Item vector: e_i = b_i + A z_i, a learned ID vector plus the item's text vector through an adapter. It enters the LLM as one
token, P e_i, which starts at the magnitude of the LLM's own token embeddings. The body reads the history left to right, so that
one pass gives a training signal at every position; scores are norm(Q h) . e_i over the whole catalogue, trained by full-softmax
cross-entropy. (Compare E4SRec and LLaRA: soft item tokens; here without a prompt around them. E is far below D because ID
vectors as wide as the LLM learn slowly from few interactions.)

With `teacher.items = "text"` an item enters as the tokens of its text instead (`distill/text_items.py`), and e_i = A z_i: a
language model that knows no IDs.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from distill.config import TeacherSection
from distill.device import autocast, compute_dtype, device
from distill.llm import (
    TeacherError,
    causal_config,
    check_causal,
    drop_vocabulary,
    last_projections,
    llm_folder,
    load_body,
    read_body,
    read_config,
    require_room,
)
from distill.text_items import read_texts
from foundation.artifact import Artifact, Draft, opens
from recommender.torch_ranking import top_k

BODY, HEAD = "body", "head.safetensors"
_INIT_STD = 0.02


class Teacher(nn.Module):
    """Body, item tokens and output head."""

    text_IZ: Tensor
    tokens_IT: Tensor | None
    body: Any  # a PreTrainedModel, or peft's wrapper around one

    def __init__(
        self, body: Any, text_IZ: Tensor, section: TeacherSection, token_rms: float, tokens_IT: Tensor | None = None
    ) -> None:
        super().__init__()
        width = body.config.hidden_size
        self.section, self.body = section, body
        self.register_buffer("text_IZ", text_IZ.float())
        self.register_buffer("tokens_IT", tokens_IT)  # int64; None where items are soft tokens
        self.adapter = nn.Linear(text_IZ.shape[1], section.item_size, bias=False)
        nn.init.normal_(self.adapter.weight, std=_INIT_STD / math.sqrt(text_IZ.shape[1]))
        if tokens_IT is None:
            self.id_IE = nn.Parameter(torch.randn(len(text_IZ), section.item_size) * _INIT_STD)
            self.to_token = nn.Linear(section.item_size, width, bias=False)
            nn.init.normal_(self.to_token.weight, std=token_rms / (_INIT_STD * math.sqrt(2 * section.item_size)))
        self.from_hidden = nn.Linear(width, section.item_size, bias=False)
        self.norm = nn.LayerNorm(section.item_size)
        self.dropout = nn.Dropout(section.item_dropout)

    @torch.no_grad()
    def start_items_at(self, table_IE: Tensor) -> None:
        """Start the ID vectors at a trained item table (as E4SRec, LLaRA and CoLLM do), its scale kept for the LLM's tokens."""
        if table_IE.shape != self.id_IE.shape:
            raise ValueError(
                f"teacher.item_size = {self.id_IE.shape[1]} must equal student.hidden_size = {table_IE.shape[1]} "
                f"where teacher.item_init = {self.section.item_init!r}"
            )
        self.to_token.weight *= _INIT_STD * math.sqrt(2) / table_IE[1:].pow(2).mean().sqrt()
        self.id_IE.copy_(table_IE)

    def table(self) -> Tensor:
        """Item vectors b_i + A z_i (of a model that reads texts A z_i), float[I + 1, E]; row 0 is zero."""
        table_IE = self.adapter(self.text_IZ)
        if self.tokens_IT is None:
            table_IE = self.id_IE + table_IE
        return torch.cat([torch.zeros_like(table_IE[:1]), table_IE[1:]])

    def forward(self, history_BL: Tensor, table_IE: Tensor) -> Tensor:
        """Normalised hidden state after each position, float[B, L, E]; scores are `hidden @ table.T`.

        Histories are padded on the left. They are shifted to the front before the body and back after it: causal attention
        never looks at what follows, so no padding mask is needed (which is faster) and position 0 is the first item.
        """
        in_front_BL = _shifted(history_BL, history_BL)
        if self.tokens_IT is None:
            tokens_BLD = self.to_token(self.dropout(F.embedding(in_front_BL, table_IE)))
            hidden_BLD = self.body(inputs_embeds=tokens_BLD.to(self.body.dtype)).last_hidden_state
        else:
            hidden_BLD = read_texts(self.body, self.tokens_IT, in_front_BL)
        hidden_BLD = _shifted(hidden_BLD, history_BL, back=True)
        return self.dropout(self.norm(self.from_hidden(hidden_BLD.to(self.from_hidden.weight.dtype))))

    def states(self, history_BL: Tensor, table_IE: Tensor, projections: bool) -> dict[str, Tensor]:
        """`hidden`, what `forward` gives, and where asked for the last layer's `query`, `key` and `value`, float[B, L, *]."""
        if not projections:
            return {"hidden": self(history_BL, table_IE)}
        if self.tokens_IT is not None:
            raise TeacherError("the objective minilm needs teacher.items = 'soft': a text has many queries, not one an item")
        with last_projections(self.body) as found:
            hidden_BLE = self(history_BL, table_IE)
        return {"hidden": hidden_BLE} | {name: _shifted(part, history_BL, back=True) for name, part in found.items()}

    @property
    def num_parameters(self) -> int:
        """Weights read when scoring: body (its vocabulary where texts are read), folded item table (padding row left out)."""
        # Quantized layers pack several weights into one element; their logical size is out x in.
        body, heads = sum(_logical_size(module) for module in self.body.modules()), [self.from_hidden, self.norm]
        if self.tokens_IT is None:
            body, heads = body - self.body.get_input_embeddings().weight.numel(), [*heads, self.to_token]
        table = (len(self.text_IZ) - 1) * self.section.item_size
        return body + table + sum(p.numel() for head in heads for p in head.parameters())


class TeacherRecommender:
    """A teacher in PyTorch as a recommender; `dtype` is what it computes in."""

    def __init__(self, teacher: Teacher, dtype: torch.dtype) -> None:
        self.teacher, self.dtype = teacher.eval(), dtype
        with torch.no_grad():
            self.table_IE = teacher.table()

    @torch.no_grad()
    def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        history = torch.from_numpy(history_BL).to(self.table_IE.device)
        with autocast(self.dtype):
            hidden_BE = self.teacher(history[:, -self.teacher.section.max_length :], self.table_IE)[:, -1]
        score_BI = hidden_BE.float() @ self.table_IE.float().T
        return top_k(score_BI, history, k)


def new_teacher(llm: Artifact, text_IZ: np.ndarray, section: TeacherSection, tokens_IT: np.ndarray | None = None) -> Teacher:
    """An untrained teacher around the pretrained body, with LoRA factors where the recipe asks for them.

    `tokens_IT`: of the items, where they are read as text.
    """
    body: Any = _quantized_body(llm, section) if section.tuning == "qlora" else load_body(llm, section.num_layers)
    check_causal(body)
    token_rms = body.get_input_embeddings().weight.detach().float().pow(2).mean().sqrt().item()
    if tokens_IT is None:
        drop_vocabulary(body)
        require_room(body, section.max_length, "teacher.max_length")
    else:
        require_room(body, tokens_IT.shape[1] * section.max_length, "teacher.item_tokens x teacher.max_length")
    if section.tuning != "full":
        body = _with_lora(body, section)
    tokens = None if tokens_IT is None else torch.from_numpy(tokens_IT)
    return Teacher(body, torch.from_numpy(text_IZ), section, token_rms, tokens).to(device())


@opens
def full_depth_teacher(
    llm: Artifact, text_IZ: np.ndarray, section: TeacherSection, tokens_IT: np.ndarray | None = None
) -> Teacher:
    """The same model with every layer of the LLM and random weights: for speed and parameter counts only."""
    config = causal_config(read_config(llm_folder(llm)), 0)
    body = AutoModel.from_config(config)
    if tokens_IT is None:
        drop_vocabulary(body)
    tokens = None if tokens_IT is None else torch.from_numpy(tokens_IT)
    return Teacher(body, torch.from_numpy(text_IZ), section, 1.0, tokens).to(device())


def merged_body(teacher: Teacher, llm: Artifact) -> PreTrainedModel:
    """The body as a plain model, LoRA factors merged into its (for QLoRA: unquantized) weights."""
    section = teacher.section
    if section.tuning == "full":
        return teacher.body
    if section.tuning == "lora":
        return teacher.body.merge_and_unload()
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    plain = load_body(llm, section.num_layers)
    plain = _with_lora(drop_vocabulary(plain) if teacher.tokens_IT is None else plain, section)
    set_peft_model_state_dict(plain, {k: v.cpu().float() for k, v in get_peft_model_state_dict(teacher.body).items()})
    return plain.merge_and_unload()


def save_teacher(teacher: Teacher, llm: Artifact, draft: Draft) -> None:
    """Write body (a folder transformers reads) and head."""
    body = merged_body(teacher, llm)
    body.float().save_pretrained(draft.path / BODY)
    save_head(teacher, draft)


def save_head(teacher: Teacher, draft: Draft) -> None:
    """Write everything but the body."""
    head = {name: tensor.contiguous() for name, tensor in teacher.state_dict().items() if not name.startswith("body.")}
    save_file(head, draft.path / HEAD)


@opens
def load_teacher(artifact: Artifact) -> Teacher:
    """Open what `save_teacher` or the teacher's quantizers wrote."""
    artifact.folder(BODY)
    artifact.file(HEAD)
    return read_teacher(artifact.path, TeacherSection.model_validate(artifact.recipe["teacher"]))


def read_teacher(folder: Path, section: TeacherSection) -> Teacher:
    """A teacher from its files."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports every cast of every layer
    read_config(folder / BODY)
    body = read_body(folder / BODY, device_map={"": str(device())})
    head = load_file(folder / HEAD)
    teacher = Teacher(body, head["text_IZ"], section, 1.0, head.get("tokens_IT"))
    missing, unexpected = teacher.load_state_dict(head, strict=False)
    if wrong := [*unexpected, *(name for name in missing if not name.startswith("body."))]:
        raise ValueError(f"{folder / HEAD} lacks or should not have {wrong[0]}")
    return teacher.eval().to(device())


def serving_teacher(teacher: Teacher) -> TeacherRecommender:
    """The teacher in its fastest correct precision here."""
    dtype = compute_dtype(teacher.section.precision)
    if getattr(teacher.body, "quantization_method", None) is None:
        teacher.body.to(dtype=dtype)  # type: ignore[call-arg]
    return TeacherRecommender(teacher, dtype)


def _shifted(x_BL: Tensor, history_BL: Tensor, back: bool = False) -> Tensor:
    """Columns of x [B, L, ...] moved so that the padding in front of `history_BL` comes last; `back`: undone."""
    length = history_BL.shape[1]
    num_padding_B1 = (history_BL == 0).sum(1, keepdim=True)
    column_L = torch.arange(length, device=history_BL.device)
    index_BL = (column_L - num_padding_B1 if back else column_L + num_padding_B1) % length
    return x_BL.gather(1, index_BL if x_BL.ndim == 2 else index_BL[..., None].expand_as(x_BL))


def _with_lora(body: PreTrainedModel, section: TeacherSection) -> Any:
    from peft import LoraConfig, get_peft_model

    rank = section.lora_rank
    return get_peft_model(body, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))  # type: ignore[return-value]


def _quantized_body(llm: Artifact, section: TeacherSection) -> PreTrainedModel:
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    if not torch.cuda.is_available():
        raise ValueError(
            "teacher.tuning = 'qlora' needs a CUDA device (4-bit training is far slower than bf16 on a CPU); use 'lora'"
        )
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    body = load_body(llm, section.num_layers, quantization_config=config, device_map={"": 0})
    return prepare_model_for_kbit_training(body, use_gradient_checkpointing=False)


def _logical_size(module: nn.Module) -> int:
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        bias = getattr(module, "bias", None)
        return module.in_features * module.out_features + (bias.numel() if bias is not None else 0)  # type: ignore[operator]
    return sum(p.numel() for p in module.parameters(recurse=False))
