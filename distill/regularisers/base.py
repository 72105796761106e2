"""The role every regulariser plays: a further loss of the student, which needs no teacher and which all arms share.

Shapes: B histories of L items in a batch, N labelled positions among them, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from distill.regularisers.config import RegulariserOptions
from recommender.student import Student

Options = TypeVar("Options", bound=RegulariserOptions)


@dataclass(frozen=True)
class Step:
    """What a step of training has at hand: padding on the left, `label_BL` 0 where there is none."""

    student: Student
    table_ID: Tensor
    history_BL: Tensor
    label_BL: Tensor
    user_B: Tensor  # whose history it is


class Regulariser(Generic[Options]):
    """A weighted loss beside the student's own. Random draws come from torch's generator, which training seeds."""

    needs_text = False  # arms without item text go without it

    def __init__(self, options: Options) -> None:
        self.options = options

    @property
    def weight(self) -> float:
        return self.options.weight

    def __call__(self, step: Step) -> Tensor:
        """A scalar, before the weight."""
        raise NotImplementedError
