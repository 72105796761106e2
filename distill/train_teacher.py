"""Stage: fine-tune the LLM into the teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.catalogue_loss import cross_entropy
from distill.config import TeacherSection
from distill.device import autocast, compute_dtype, device
from distill.evaluation import EpochBatches, Validator, record_accuracy, save_history
from distill.teacher import new_teacher, read_teacher, save_teacher, serving_teacher
from distill.text import load_text
from distill.text_items import item_tokens
from distill.tracking import Tracker
from distill.training import Fit
from foundation.artifact import Artifact, Draft
from recommender.split import Sequences
from recommender.student import load_student
from recommender.windows import Batch, TrainingWindows


def build_teacher(
    llm: Artifact,
    text: Artifact,
    control: Artifact | None,
    sequences: Sequences,
    section: TeacherSection,
    seed: int,
    draft: Draft,
    tracker: Tracker | None = None,
    prompts: Sequence[str] = (),
) -> None:
    """Train, keep the best validation epoch, save and evaluate what was saved.

    `control` gives the ID vectors' start; `prompts` are the items' texts, where the LLM reads those.
    """
    torch.manual_seed(seed)
    tokens_IT = item_tokens(llm, prompts, section.item_tokens) if section.items == "text" else None
    teacher = new_teacher(llm, load_text(text)[0], section, tokens_IT)
    if control is not None:
        teacher.start_items_at(load_student(control).items().to(device()))
    dtype, validator = compute_dtype(section.precision), Validator(sequences, section.max_length, section.optim, device())

    def losses(batch: Batch) -> dict[str, Tensor]:
        label_BL = torch.from_numpy(batch.label_BL).to(device())
        table_ID = teacher.table()
        with autocast(dtype):  # the hidden states only: scores in bf16 have 8 bits, and tie
            hidden_BLD = teacher(torch.from_numpy(batch.history_BL).to(device()), table_ID)
        labelled_BL = label_BL > 0
        return {"loss": cross_entropy(hidden_BLD[labelled_BL].float(), table_ID[1:], label_BL[labelled_BL] - 1)}

    def last_hidden(history_BL: Tensor, table_ID: Tensor) -> Tensor:
        with autocast(dtype):
            return teacher(history_BL, table_ID)[:, -1]

    def validate() -> float:
        with torch.no_grad():
            table_ID = teacher.table()
            return validator(lambda history_BL: last_hidden(history_BL, table_ID), table_ID)

    run = Fit(
        teacher,
        batches=EpochBatches(TrainingWindows(sequences, section.max_length), section.optim.batch_size, seed),
        losses=losses,
        validate=validate,
        section=section.optim,
        seed=seed,
        checkpoint=draft.checkpoint,
        name="teacher",
        slow_parameters=list(teacher.body.parameters()),
        slow_learning_rate=section.body_learning_rate,
        tracker=tracker,
    ).run()
    save_teacher(teacher, llm, draft)
    save_history(run.history, draft.path)
    saved = serving_teacher(read_teacher(draft.path, section))
    record_accuracy(saved, sequences, draft)
    draft.metrics |= {
        "num_parameters": saved.teacher.num_parameters,
        "best_epoch": run.best_epoch,
        "compute_dtype": str(dtype).removeprefix("torch."),
    }
