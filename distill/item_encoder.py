"""Stage: the LLM tuned end to end to encode items, for what users do next.

Shapes: B batch, L length, P positions, I items (row 0 is padding), T tokens of a text at most, N items of a batch, D the
student's hidden size, Z what the LLM says of a text (`distill/pooling.py`), K its principal components.

    e_i = b_i + eta W z_i,     z_i = (pooled LLM(text_i) - mu) / sigma

The student's architecture reads the history in these vectors and is trained, with the LLM below it, by softmax over the items
of the batch (of its histories and labels), all of which are encoded anew: vectors kept from earlier steps would be told apart
by their age (docs/log.md). A batch has item i with probability q_i = 1 - (1 - c_i / sum c)^n, for c_i interactions and n in the
batch, so the sum over the catalogue is estimated by e^{s_label} + sum of the others' e^{s_i} / q_i (sampled softmax: Bengio and
Senecal, 2008). mu and sigma are the pretrained LLM's and stay. Token embeddings are not trained, so that tokens of new items
mean what they meant. (Compare MoRec: Yuan et al., 2023, and LLM2Rec: He et al., 2025.)

What comes out is an LLM again, as deep as `text.layers` need it, for the item text vectors of student and teacher
(`distill/text.py`); beside it lies the recommender it was trained in, which may teach. With `frozen_layers` among `text.layers`
the vectors hold what the pretrained LLM said as well.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.config import ItemEncoderSection, TextSection
from distill.device import autocast, compute_dtype, device
from distill.evaluation import EpochBatches, Validator, record_accuracy, save_history
from distill.llm import SOURCE, WEIGHTS_FOLDER, TeacherError, check_causal, load_tokenizer, require_room
from distill.pooling import load_pooled_body, pooled
from distill.text import mean_and_deviation, text_basis
from distill.tracking import Tracker
from distill.training import Fit
from foundation.artifact import Artifact, Draft
from recommender.config import StudentSection
from recommender.split import Sequences
from recommender.student import Student, StudentRecommender, load_student, save_student
from recommender.windows import Batch, TrainingWindows

_ROWS = 1024  # texts of similar length that pass through the LLM together


class ItemEncoder(nn.Module):
    """The LLM's body as a function of item rows."""

    token_IT: Tensor
    mean_Z: Tensor
    std_Z: Tensor

    def __init__(self, body: Any, layers: Sequence[int], tokens: Sequence[Sequence[int]], dtype: torch.dtype) -> None:
        super().__init__()
        self.body, self.layers, self.dtype = body, layers, dtype
        self.length_I = np.array([0, *map(len, tokens)]).clip(min=1)
        token_IT = np.zeros((len(tokens) + 1, self.length_I.max()), np.int64)
        for row, own in zip(token_IT[1:], tokens, strict=True):
            row[: len(own)] = own
        self.register_buffer("token_IT", torch.from_numpy(token_IT), persistent=False)
        self.register_buffer("mean_Z", torch.zeros(body.config.hidden_size * len(layers)), persistent=False)
        self.register_buffer("std_Z", torch.ones(body.config.hidden_size * len(layers)), persistent=False)

    def forward(self, row_N: np.ndarray) -> Tensor:
        """z of items, float32[N, Z]. Texts are padded at their end, which a causal body does not see."""
        order_N = np.argsort(self.length_I[row_N], kind="stable")
        with autocast(self.dtype):  # one for all chunks, so that weights are rounded once
            chunks = [self._pooled(row_N[order_N[start : start + _ROWS]]) for start in range(0, len(row_N), _ROWS)]
        back_N = torch.from_numpy(np.argsort(order_N)).to(self.mean_Z.device)
        return ((torch.cat(chunks) - self.mean_Z) / self.std_Z)[back_N]

    def _pooled(self, row_N: np.ndarray) -> Tensor:
        longest, to = int(self.length_I[row_N].max()), self.mean_Z.device
        mask_NT = torch.from_numpy(np.arange(longest) < self.length_I[row_N, None]).to(to)
        token_NT = self.token_IT[torch.from_numpy(row_N).to(to), :longest]
        return pooled(self.body, self.layers, token_NT, mask_NT, pad_mask=False)

    @torch.no_grad()
    def all_items(self) -> Tensor:
        """z of the catalogue, float32[I + 1, Z]; row 0 is zero."""
        rows = np.arange(1, len(self.length_I))
        z_IZ = torch.cat([self(rows[start : start + _ROWS * 16]) for start in range(0, len(rows), _ROWS * 16)])
        return F.pad(z_IZ, (0, 0, 1, 0))

    @torch.no_grad()
    def standardise(self) -> None:
        """Take mean and deviation of the catalogue as they are now."""
        mean_Z, std_Z = mean_and_deviation(self.all_items()[1:].cpu().numpy())
        self.mean_Z.copy_(torch.from_numpy(mean_Z))
        self.std_Z.copy_(torch.from_numpy(std_Z))


def freeze(body: Any, num_layers: int) -> None:
    """Keep all but the layers after the first `num_layers` as it is: token embeddings and final norm as well."""
    depth = body.config.num_hidden_layers
    stack = next((m for m in body.modules() if isinstance(m, nn.ModuleList) and len(m) == depth), None)
    if stack is None:
        raise TeacherError(
            f"{type(body).__name__} keeps its layers in no list: it cannot be tuned as item encoder; take another LLM"
        )
    if num_layers >= depth:
        raise TeacherError(f"item_encoder.frozen_layers = {num_layers} leaves none of the {depth} layers that text.layers read")
    body.requires_grad_(False)
    for layer in stack[num_layers:]:
        layer.requires_grad_(True)


def inclusion(count_I: np.ndarray, num_drawn: int) -> np.ndarray:
    """The chance of each item to be among `num_drawn` interactions, float64[I]."""
    return -np.expm1(num_drawn * np.log1p(-count_I / count_I.sum()))


def sampled_softmax(hidden_PD: Tensor, table_ND: Tensor, label_P: Tensor, log_q_N: Tensor) -> Tensor:
    """Cross-entropy over a catalogue of which N items were drawn, each with probability q; labels always are among them."""
    score_PN = hidden_PD @ table_ND.T
    is_label_PN = F.one_hot(label_P, len(table_ND)).bool()
    return F.cross_entropy(torch.where(is_label_PN, score_PN, score_PN - log_q_N), label_P)


@torch.no_grad()
def _start_at(student: Student, control: Artifact, text: Artifact) -> None:
    """Take over a trained arm: its principal components become a projection of all Z dimensions."""
    arm, basis_ZK = load_student(control), torch.from_numpy(text_basis(text))
    assert arm.items.projection is not None and student.items.projection is not None
    weight_DZ = arm.items.projection.weight @ basis_ZK.T
    student.load_state_dict(arm.state_dict() | {"items.projection.weight": weight_DZ, "items.text_IZ": student.items.text_IZ})


def build_item_encoder(
    llm: Artifact,
    prompts: Sequence[str],
    sequences: Sequences,
    section: ItemEncoderSection,
    text: TextSection,
    architecture: StudentSection,
    seed: int,
    draft: Draft,
    control: tuple[Artifact, Artifact] | None = None,
    tracker: Tracker | None = None,
) -> None:
    """Train, keep the best validation epoch; write the LLM as `build_llm` does, and the recommender it was trained in.

    `control` is control-text and its item text vectors, to start from.
    """
    torch.manual_seed(seed)
    tokenizer, body = load_tokenizer(llm), load_pooled_body(llm, text.layers)
    check_causal(body)
    require_room(body, text.max_tokens, "text.max_tokens")
    freeze(body, section.frozen_layers)
    tokens = tokenizer(list(prompts), truncation=True, max_length=text.max_tokens)["input_ids"]
    encoder = ItemEncoder(body, text.layers, tokens, compute_dtype("auto")).to(device()).eval()
    encoder.standardise()
    student = Student(architecture, sequences.num_items, encoder.all_items()).to(device())
    if control is not None:
        _start_at(student, *control)
    if not section.ids:
        student.items.id_ID.requires_grad_(False).zero_()
    validator = Validator(sequences, architecture.max_length, section.optim, device())
    count_I = sequences.train_counts()

    def table_of(row_N: np.ndarray, z_NZ: Tensor) -> Tensor:
        return student.items.id_ID[torch.from_numpy(row_N).to(device())] + student.items.of_text(z_NZ)

    def losses(batch: Batch) -> dict[str, Tensor]:
        seen_2BL = np.stack([batch.history_BL, batch.label_BL])
        row_N, place = np.unique(np.append(0, seen_2BL), return_inverse=True)  # row 0 stays row 0
        table_ND = F.pad(table_of(row_N[1:], encoder(row_N[1:])), (0, 0, 1, 0))
        history_BL, label_BL = torch.from_numpy(place[1:].reshape(seen_2BL.shape)).to(device())
        hidden_PD = student(history_BL, table_ND)[label_BL > 0]
        num_drawn = len(batch) + len(batch.history_BL)  # of every window its labels and its first item
        log_q = torch.from_numpy(np.log(inclusion(count_I, num_drawn)[row_N[1:]])).float().to(device())
        return {"loss": sampled_softmax(hidden_PD, table_ND[1:], label_BL[label_BL > 0] - 1, log_q)}

    def validate() -> float:
        with torch.no_grad():
            rows = np.arange(len(tokens) + 1)
            table_ID = F.pad(table_of(rows, encoder.all_items())[1:], (0, 0, 1, 0))
            return validator(lambda history_BL: student.last_hidden(history_BL, table_ID), table_ID)

    run = Fit(
        nn.ModuleDict({"encoder": encoder, "student": student}),
        batches=EpochBatches(TrainingWindows(sequences, architecture.max_length), section.optim.batch_size, seed),
        losses=losses,
        validate=validate,
        section=section.optim,
        seed=seed,
        checkpoint=draft.checkpoint,
        name="item-encoder",
        slow_parameters=list(body.parameters()),
        slow_learning_rate=section.body_learning_rate,
        tracker=tracker,
    ).run()
    student.items.text_IZ.copy_(encoder.all_items())
    body.float().save_pretrained(draft.path / WEIGHTS_FOLDER)  # type: ignore[call-arg]
    tokenizer.save_pretrained(draft.path / WEIGHTS_FOLDER)
    source = {"name": "tuned as item encoder", "of": llm.digest, "precision": "float32"}
    (draft.path / SOURCE).write_text(json.dumps(source, indent=1))
    save_student(student, draft)
    save_history(run.history, draft.path)
    record_accuracy(StudentRecommender(student), sequences, draft)
    draft.metrics |= {
        "architecture": body.config.model_type,
        "num_layers": body.config.num_hidden_layers,
        "num_parameters": student.num_parameters,
        "best_epoch": run.best_epoch,
    }
