"""Who teaches: a model that gives a distribution over the catalogue at every position of a history.

Several of them are averaged into one teacher (`targets.members`): the LLM, its other seeds, control arms, a linear model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.config import LINEAR
from distill.device import autocast, compute_dtype, device
from distill.ease import Ease, load_ease
from distill.teacher import Teacher, load_teacher
from foundation.artifact import Artifact
from recommender.student import Student, load_student
from recommender.torch_ranking import top_k


class Member(Protocol):
    """One of those who teach."""

    max_length: int

    def see(self, history_BL: Tensor, keep_BL: Tensor, states: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """After every position that `keep_BL` marks: log-probabilities of the next item, float32[N, I] (of a linear model
        its scores, of an ensemble with one their sum), and the states held.

        `states` names those that are asked for (`objectives.config.STATES`), each float[N, *].
        """
        ...


def open_member(artifact: Artifact) -> Member:
    """The teacher, the linear model or the arm of an artefact."""
    if artifact.kind in LINEAR:
        return load_ease(artifact)
    return TeacherMember(load_teacher(artifact)) if artifact.kind == "teacher" else StudentMember(load_student(artifact))


class TeacherMember:
    """An LLM that was tuned to recommend."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher, self.dtype = teacher.eval(), compute_dtype(teacher.section.precision)
        self.max_length = teacher.section.max_length
        with torch.no_grad():
            self.table_IE = teacher.table()

    @torch.no_grad()
    def see(self, history_BL: Tensor, keep_BL: Tensor, states: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        with autocast(self.dtype):
            found = self.teacher.states(history_BL, self.table_IE, projections="query" in states)
        logits_NI = found["hidden"][keep_BL].float() @ self.table_IE[1:].float().T
        return logits_NI.log_softmax(-1), {name: found[name][keep_BL] for name in states}


class StudentMember:
    """An arm of the student's architecture."""

    def __init__(self, student: Student) -> None:
        self.student, self.max_length = student.eval().to(device()), student.section.max_length
        with torch.no_grad():
            self.table_ID = self.student.items()

    @torch.no_grad()
    def see(self, history_BL: Tensor, keep_BL: Tensor, states: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        found = self.student.states(history_BL, self.table_ID)
        logits_NI = found["hidden"][keep_BL] @ self.table_ID[1:].T
        return logits_NI.log_softmax(-1), {name: found[name][keep_BL] for name in states}


class Ensemble:
    """Several members as one teacher: a product of experts (Hinton, 2002), not renormalised.

        log p(i) = sum_m w_m log p_m(i) / sum_m w_m + sum_e v_e s_e(i) + a constant

    m: members that give probabilities, of weight w; e: linear models, whose scores s have no scale of their own, of weight v.
    Left out: weights by example or by confidence, as multi-teacher methods learn them; `follow_audit` alone looks at slices.
    """

    def __init__(self, members: Sequence[tuple[float, Member]]) -> None:
        total = sum(weight for weight, member in members if not isinstance(member, Ease))
        self.members = [(weight if isinstance(member, Ease) else weight / total, member) for weight, member in members]
        self.max_length = min(member.max_length for _, member in members)

    def see(self, history_BL: Tensor, keep_BL: Tensor, states: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """States are those of the first member."""
        (weight, first), *others = self.members
        own_NI, held = first.see(history_BL, keep_BL, states)
        sum_NI = weight * own_NI
        for weight, member in others:
            sum_NI = sum_NI + weight * member.see(history_BL, keep_BL)[0]
        return sum_NI, held


class MemberRecommender:
    """A member as a recommender."""

    def __init__(self, member: Member) -> None:
        self.member = member

    def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        history = torch.from_numpy(history_BL).to(device())
        return top_k(F.pad(after_last(self.member, history), (1, 0)), history, k)


def after_last(member: Member, history_BL: Tensor) -> Tensor:
    """What a member expects after each whole history, float32[B, I]."""
    history_BL = history_BL[:, -member.max_length :]
    keep_BL = torch.zeros_like(history_BL, dtype=torch.bool)
    keep_BL[:, -1] = True
    return member.see(history_BL, keep_BL)[0]
