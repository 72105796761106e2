"""Stage: train the student, or one of its control arms, with the same architecture, loss and budget.

control-id           no text, no teacher          b_i
control-text         item text, no teacher        b_i + eta W z_i
control-tuned        text by the tuned encoder,  b_i + eta W z_i
                     no teacher
control-ensemble-kd  item text, taught by the     b_i + eta W z_i, plus the recipe's distillation objectives
                     averaged control-text seeds
                     (and EASE without text)
student              item text and the teacher    b_i + eta W z_i, plus the recipe's distillation objectives
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.catalogue_loss import over_catalogue
from distill.config import DistillSection
from distill.device import device
from distill.evaluation import EpochBatches, Validator, record_accuracy, save_history
from distill.objectives import build_objectives, build_state_objectives
from distill.objectives.base import StateObjective
from distill.regularisers import build_regularisers
from distill.regularisers.base import Regulariser, Step
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


class Losses:
    """What a step of training minimises: the label, what the targets teach, and the regularisers; called with a batch."""

    def __init__(
        self,
        student: Student,
        regularisers: Mapping[str, Regulariser],
        targets: Targets | None = None,
        distill: DistillSection | None = None,
        taught_P: np.ndarray | None = None,
    ) -> None:
        """`taught_P`, bool over positions, says which learn from the targets (all), the others from their labels alone."""
        self.student, self.regularisers = student, regularisers
        self.targets, self.distill, self.taught_P = targets, distill, taught_P
        self.objectives = build_objectives(distill.objectives) if distill else {}
        self.state_objectives: dict[str, StateObjective] = {}
        if distill and targets is not None:
            widths = {name: state.shape[1] for name, state in targets.states.items()}
            self.state_objectives = build_state_objectives(distill.objectives, student.section.hidden_size, widths)
        self.learned = nn.ModuleDict(self.state_objectives).to(device())  # what they learn with the student

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, and its terms before their weights: `label`, and one of each objective and regulariser."""
        history_BL, label_BL = (torch.from_numpy(part).to(device()) for part in (batch.history_BL, batch.label_BL))
        table_ID = self.student.items()
        states, taught_BL = self.student.states(history_BL, table_ID), self._taught(batch)
        keep_BL = torch.from_numpy(batch.position_BL > 0).to(device())
        terms = self._scored(states["hidden"][keep_BL], table_ID[1:], batch, taught_BL)
        step = Step(self.student, table_ID, history_BL, label_BL, torch.from_numpy(batch.user_B).to(device()))
        beside = {name: (regulariser.weight, regulariser(step)) for name, regulariser in self.regularisers.items()}
        beside |= self._held(states, batch, taught_BL)
        terms["loss"] = terms["loss"] + sum(weight * term for weight, term in beside.values())
        if self.targets is None and not self.regularisers:
            del terms["label"]  # which is the loss
        return terms | {name: term for name, (_, term) in beside.items()}

    def _taught(self, batch: Batch) -> np.ndarray:
        """Which positions of a batch learn from the targets, bool[B, L]."""
        keep_BL = batch.position_BL > 0
        if self.targets is None:
            return np.zeros_like(keep_BL)
        return keep_BL if self.taught_P is None else keep_BL & self.taught_P[batch.position_BL - 1]

    def _scored(self, hidden_ND: Tensor, table_ID: Tensor, batch: Batch, taught_BL: np.ndarray) -> dict[str, Tensor]:
        """`loss` of the scores of all N positions: the label, where it is known, and, where they are taught, each objective."""
        keep_BL, count = batch.position_BL > 0, len(batch)
        taught_N, position_N = taught_BL[keep_BL], batch.position_BL[keep_BL]
        label_N = torch.from_numpy(batch.label_BL[keep_BL] - 1).to(device())  # -1 at an end
        label_weight = 1.0 if self.distill is None else self.distill.label_weight
        weight_N = torch.from_numpy(np.where(taught_N, label_weight, 1.0)).to(hidden_ND)
        num_labels = max(int((batch.label_BL > 0).sum()), 1)

        def terms(scores_RI: Tensor, rows: slice) -> dict[str, Tensor]:
            log_q_RI, taught_R = scores_RI.log_softmax(-1), taught_N[rows]
            label_R = F.nll_loss(log_q_RI, label_N[rows], reduction="none", ignore_index=-1)
            found = {"loss": weight_N[rows] @ label_R / count, "label": label_R.sum() / num_labels}
            if taught_R.any() and self.objectives and self.targets is not None:
                log_q_TI = log_q_RI if taught_R.all() else log_q_RI[torch.from_numpy(taught_R).to(device())]
                teacher, share = self.targets.at(position_N[rows][taught_R], device()), int(taught_R.sum()) / count
                for name, objective in self.objectives.items():
                    found[name] = share * objective(log_q_TI, teacher)
                    found["loss"] = found["loss"] + objective.weight * found[name]
            return found

        return over_catalogue(hidden_ND, table_ID, terms)

    def _held(self, states: Mapping[str, Tensor], batch: Batch, taught_BL: np.ndarray) -> dict[str, tuple[float, Tensor]]:
        """Weight and term of each objective that reads states, over the positions that are taught, times their share of all."""
        if self.targets is None or not self.state_objectives or not taught_BL.any():
            return {}
        keep_BL, share = torch.from_numpy(taught_BL).to(device()), int(taught_BL.sum()) / len(batch)
        own = {name: state[keep_BL] for name, state in states.items()}
        held = self.targets.states_at(batch.position_BL[taught_BL], device())
        return {name: (one.weight, share * one(own, held, keep_BL)) for name, one in self.state_objectives.items()}


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
    if distill and distill.dropout is not None:
        section = section.model_copy(update={"dropout": distill.dropout})
    student = Student(section, sequences.num_items, None if text_IZ is None else torch.from_numpy(text_IZ)).to(device())
    ends = targets is not None and targets.ends
    taught_P = ~np.any([position_slices(sequences, ends)[name] for name in untaught], axis=0) if untaught else None
    beside = build_regularisers(regularisers or {}, has_text=text_IZ is not None)
    losses = Losses(student, beside, targets, distill, taught_P)
    learned = losses.learned
    validator = Validator(sequences, section.max_length, section.optim, device())

    def validate() -> float:
        with torch.no_grad():
            table_ID = student.items()
            return validator(lambda history_BL: student.last_hidden(history_BL, table_ID), table_ID)

    run = Fit(
        nn.ModuleDict({"student": student, "objectives": learned}) if list(learned.parameters()) else student,
        batches=EpochBatches(TrainingWindows(sequences, section.max_length, ends), section.optim.batch_size, seed),
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
