"""Stage: train the student, or one of its control arms, with the same architecture, loss and budget.

control-id           no text, no teacher          b_i
control-text         item text, no teacher        b_i + eta W z_i
control-tuned        text by the tuned encoder,  b_i + eta W z_i
                     no teacher
control-ensemble-kd  item text, taught by the     b_i + eta W z_i, plus the recipe's distillation objectives
                     averaged control-text seeds
student              item text and the teacher    b_i + eta W z_i, plus the recipe's distillation objectives
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.config import DistillSection
from distill.device import device
from distill.evaluation import EpochBatches, Validator, record_accuracy, save_history
from distill.objectives import build_objectives, build_state_objectives
from distill.objectives.base import StateObjective
from distill.regularisers import build_regularisers
from distill.regularisers.base import Step
from distill.regularisers.text_alignment import alignment, uniformity
from distill.targets import Targets
from distill.tracking import Tracker
from distill.training import Fit
from foundation.artifact import Draft
from recommender.config import StudentSection
from recommender.slices import position_slices
from recommender.split import Sequences
from recommender.student import Student, StudentRecommender, save_student
from recommender.windows import Batch, TrainingWindows


def build_student(
    arm: str,
    sequences: Sequences,
    section: StudentSection,
    seed: int,
    draft: Draft,
    *,
    text_IZ: np.ndarray | None = None,
    targets: Targets | None = None,
    distill: DistillSection | None = None,
    regularisers: Mapping[str, Mapping[str, Any]] | None = None,
    untaught: Sequence[str] = (),
    tracker: Tracker | None = None,
) -> None:
    """Train one arm, keep its best validation epoch, save and evaluate it.

    `targets` and `distill` go together; positions of the slices `untaught` learn from their labels alone.
    """
    torch.manual_seed(seed)
    student = Student(section, sequences.num_items, None if text_IZ is None else torch.from_numpy(text_IZ)).to(device())
    windows = TrainingWindows(sequences, section.max_length)
    objectives = build_objectives(distill.objectives) if distill else {}
    state_objectives: dict[str, StateObjective] = {}
    if distill and targets is not None:
        widths = {name: state.shape[1] for name, state in targets.states.items()}
        state_objectives = build_state_objectives(distill.objectives, section.hidden_size, widths)
    taught_P = ~np.any([position_slices(sequences)[name] for name in untaught], axis=0) if untaught else np.array(True)
    taught_P = np.broadcast_to(taught_P, windows.num_positions)
    learned = nn.ModuleDict(state_objectives).to(device())
    beside = build_regularisers(regularisers or {}, has_text=text_IZ is not None)
    validator = Validator(sequences, section.max_length, section.optim, device())

    def losses(batch: Batch) -> dict[str, Tensor]:
        label_BL = torch.from_numpy(batch.label_BL).to(device())
        history_BL, table_ID = torch.from_numpy(batch.history_BL).to(device()), student.items()
        states = student.states(history_BL, table_ID)
        hidden_BLD = states["hidden"]
        logits_NI = hidden_BLD[label_BL > 0] @ table_ID[1:].T
        label_N = F.cross_entropy(logits_NI, label_BL[label_BL > 0] - 1, reduction="none")
        label_loss = label_N.mean()
        step = Step(student, table_ID, history_BL, label_BL, torch.from_numpy(batch.user_B).to(device()))
        terms = {name: regulariser(step) for name, regulariser in beside.items()}
        total, weight = label_loss, {name: regulariser.weight for name, regulariser in beside.items()}
        if targets is not None and distill is not None:
            taught_BL = taught_P[batch.position_BL - 1] & (batch.label_BL > 0)
            keep_BL, position_N = torch.from_numpy(taught_BL).to(device()), batch.position_BL[taught_BL]
            share = len(position_N) / len(batch)
            scored_NI = logits_NI if share == 1 else logits_NI[keep_BL[label_BL > 0]]  # a copy is as large as they are
            if len(position_N):
                teacher = targets.at(position_N, device())
                terms |= {name: share * objective(scored_NI, teacher) for name, objective in objectives.items()}
            if len(position_N) and state_objectives:
                own, held = {name: state[keep_BL] for name, state in states.items()}, targets.states_at(position_N, device())
                terms |= {name: share * objective(own, held, keep_BL) for name, objective in state_objectives.items()}
            total = torch.where(keep_BL[label_BL > 0], distill.label_weight, 1.0).to(label_N) @ label_N / len(label_N)
            weight |= {name: objective.weight for name, objective in (objectives | state_objectives).items()}
        if not terms and targets is None:
            return {"loss": label_loss}
        return {"loss": total + sum(weight[name] * term for name, term in terms.items()), "label": label_loss, **terms}

    def validate() -> float:
        with torch.no_grad():
            table_ID = student.items()
            return validator(lambda history_BL: student.last_hidden(history_BL, table_ID), table_ID)

    run = Fit(
        nn.ModuleDict({"student": student, "objectives": learned}) if list(learned.parameters()) else student,
        batches=EpochBatches(windows, section.optim.batch_size, seed),
        losses=losses,
        validate=validate,
        section=section.optim,
        seed=seed,
        checkpoint=draft.checkpoint,
        name=arm,
        tracker=tracker,
    ).run()
    save_student(student, draft)
    save_history(run.history, draft.path)
    record_accuracy(StudentRecommender(student), sequences, draft)
    if student.items.projection is not None:
        draft.metrics |= _geometry(student)
    draft.metrics |= {"best_epoch": run.best_epoch, "num_parameters": student.num_parameters}


@torch.no_grad()
def _geometry(student: Student) -> dict[str, float]:
    """How near text and ID vectors of an item lie, and how evenly each kind is spread."""
    table, has_text_I = student.items, student.items.text_IZ.norm(dim=-1) > 0
    if has_text_I.sum() < 2:
        return {}
    by_text_ND, by_id_ND = table.of_text(table.text_IZ[has_text_I]), table.id_ID[has_text_I]
    return {
        "alignment": alignment(by_text_ND, by_id_ND),
        "uniformity_of_text": uniformity(by_text_ND),
        "uniformity_of_ids": uniformity(by_id_ND),
    }
