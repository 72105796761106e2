"""Each objective against its contract, and against what only it promises."""

from __future__ import annotations

import pytest
import torch

from distill.objectives import METHODS, build_objectives
from distill.objectives.base import Objective, TeacherTargets
from distill.objectives.forward_kl import ForwardKL
from tests.contracts import NUM_ITEMS, TEMPERATURE, ObjectiveContract


class TestForwardKL(ObjectiveContract):
    def make(self) -> Objective:
        return ForwardKL()

    def reference(
        self, student_logits_NI: torch.Tensor, teacher_logits_NI: torch.Tensor, targets: TeacherTargets
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for n in range(len(student_logits_NI)):
            q = torch.softmax(student_logits_NI[n] / TEMPERATURE, 0)
            kept = targets.index_NK[n].tolist()
            rest = [i for i in range(NUM_ITEMS) if i not in kept]
            for i, p in zip(kept, targets.probability_NK[n], strict=True):
                total = total + p * torch.log(p / q[i])
            if rest:
                tail = 1 - targets.probability_NK[n].sum()
                total = total + tail * torch.log(tail / q[rest].sum())
        return total / len(student_logits_NI) * TEMPERATURE**2

    def test_kept_top_k_bounds_the_full_divergence_from_below(self) -> None:
        student, teacher = self.logits(2), self.logits(1)
        losses = [self.make()(student, self.targets(teacher, k)).item() for k in (1, 3, 6, NUM_ITEMS)]
        assert losses == sorted(losses)
        full = torch.nn.functional.kl_div(
            (student / TEMPERATURE).log_softmax(-1),
            (teacher / TEMPERATURE).log_softmax(-1),
            log_target=True,
            reduction="batchmean",
        )
        assert losses[-1] == pytest.approx(full.item() * TEMPERATURE**2, rel=1e-9)


def test_every_objective_has_a_contract_test() -> None:
    tested = {type(contract().make()).__name__ for contract in ObjectiveContract.__subclasses__()}
    assert tested == {path.split(":")[1] for path in METHODS.values()}


def test_unknown_option_is_refused() -> None:
    with pytest.raises(ValueError, match=r"distill.objectives.forward_kl: .*wieght"):
        build_objectives({"forward_kl": {"wieght": 1.0}})
