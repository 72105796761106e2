"""The roles of objectives: of what is scored (`Objective`), and of what lies beneath (`StateObjective`).

Shapes: N training positions of a batch, I items (no padding column), K stored teacher candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from distill.objectives.config import ObjectiveOptions

Options = TypeVar("Options", bound=ObjectiveOptions)


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher at N positions: its K likeliest items (0-based, distinct, likeliest first) and their probabilities.

    What is missing to 1 is the mass of all other items.
    """

    index_NK: Tensor
    probability_NK: Tensor
    temperature: float

    @property
    def tail_N(self) -> Tensor:
        return (1 - self.probability_NK.sum(-1)).clamp(min=0)


def draw(log_weight_NK: Tensor, number: int) -> Tensor:
    """Columns drawn without replacement with weights e^{log_weight}, int64[N, number], from torch's generator.

    Gumbel noise on log weights, and the largest taken (Efraimidis and Spirakis, 2006).
    """
    return (log_weight_NK - torch.empty_like(log_weight_NK).exponential_().log()).topk(number).indices


class StateObjective(nn.Module, Generic[Options]):
    """A weighted loss between what teacher and student hold at a position; what it learns itself is trained with the student.

    The widths are those of the states of `STATES`, by name.
    """

    def __init__(self, options: Options, student_widths: Mapping[str, int], teacher_widths: Mapping[str, int]) -> None:
        super().__init__()
        self.options = options

    @property
    def weight(self) -> float:
        return self.options.weight

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], keep_BL: Tensor) -> Tensor:
        """A scalar, before the weight; states are float[N, *], of the N positions that `keep_BL` marks, row by row."""
        raise NotImplementedError


class Objective(Generic[Options]):
    """A weighted loss between teacher targets and the student's distribution."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @property
    def weight(self) -> float:
        return self.options.weight

    def __call__(self, log_q_NI: Tensor, targets: TeacherTargets) -> Tensor:
        """Mean loss over positions, a scalar, before the weight; they come a few at a time (`distill/catalogue_loss.py`).

        `log_q_NI`: the student's log-probabilities, which the label needs as well and which are computed once for all.
        """
        raise NotImplementedError
