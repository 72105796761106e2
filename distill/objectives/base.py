"""The role every objective plays.

Shapes: N training positions of a batch, I items (no padding column), K stored teacher candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher at N positions: its K likeliest items (0-based, distinct), their probabilities, and the rest's mass."""

    index_NK: Tensor
    probability_NK: Tensor
    temperature: float

    @property
    def tail_N(self) -> Tensor:
        return (1 - self.probability_NK.sum(-1)).clamp(min=0)


class Objective:
    """A weighted loss between teacher targets and student logits."""

    def __init__(self, weight: float = 1.0) -> None:
        if not weight >= 0:
            raise ValueError(f"weight = {weight!r} must be a number >= 0")
        self.weight = weight

    def __call__(self, student_logits_NI: Tensor, targets: TeacherTargets) -> Tensor:
        """Mean loss over positions, a scalar, before the weight."""
        raise NotImplementedError
