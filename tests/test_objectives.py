"""Each objective against its contract, and against what only it promises."""

from __future__ import annotations

import pytest
import torch

from distill.objectives import METHODS, build_objectives
from distill.objectives.base import Objective, TeacherTargets
from distill.objectives.config import OPTIONS, ObjectiveOptions, RrdOptions
from distill.objectives.forward_kl import ForwardKL
from distill.objectives.rrd import RelaxedRanking
from tests.contracts import NUM_ITEMS, TEMPERATURE, ObjectiveContract


class TestForwardKL(ObjectiveContract):
    def make(self) -> Objective:
        return ForwardKL(ObjectiveOptions())

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


class TestRelaxedRanking(ObjectiveContract):
    """With room for every item nothing is left to chance."""

    zero_at_equality = False

    def make(self) -> Objective:
        return RelaxedRanking(RrdOptions(num_interesting=NUM_ITEMS, num_uninteresting=NUM_ITEMS))

    def reference(
        self, student_logits_NI: torch.Tensor, teacher_logits_NI: torch.Tensor, targets: TeacherTargets
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for n in range(len(student_logits_NI)):
            left = set(range(NUM_ITEMS))
            for i in targets.index_NK[n].tolist():
                total = total - torch.log(student_logits_NI[n, i].exp() / student_logits_NI[n, sorted(left)].exp().sum())
                left.remove(i)
        return total / len(student_logits_NI)

    def test_draws_keep_the_order_prefer_the_first_and_stay_apart(self) -> None:
        torch.manual_seed(0)
        index_NK = torch.arange(10).flip(0).expand(2000, 10)  # the teacher's list: 9, 8, … 0, of 30 items
        objective = RelaxedRanking(RrdOptions(num_interesting=3, num_uninteresting=5, rank_temperature=2.0))
        drawn_NK = objective._interesting(index_NK)
        assert drawn_NK.shape == (2000, 3)
        assert (drawn_NK[:, :-1] > drawn_NK[:, 1:]).all()
        counts = torch.bincount(drawn_NK.flatten(), minlength=10)
        assert counts[9] > 2 * counts[5] > 4 * counts[1]
        below_NL = objective._uninteresting(torch.zeros(2000, 30), index_NK, 20)
        assert below_NL.shape == (2000, 5)
        assert below_NL.min() == 10
        assert all(len(set(row)) == 5 for row in below_NL.tolist())
        assert torch.bincount(below_NL.flatten(), minlength=30)[10:].min() > 400  # 500 are expected of each

    def test_one_draw_weight_is_as_stated(self) -> None:
        torch.manual_seed(0)
        drawn_N1 = RelaxedRanking(RrdOptions(num_interesting=1, rank_temperature=3.0))._interesting(
            torch.arange(4).expand(20_000, 4)
        )
        expected = torch.softmax(-torch.arange(1.0, 5) / 3.0, 0)
        assert torch.allclose(torch.bincount(drawn_N1.flatten()) / 20_000, expected, atol=0.015)

    def test_the_teachers_own_order_is_the_likeliest(self) -> None:
        teacher = self.logits(1)
        losses = [self.make()(scores, self.targets(teacher, NUM_ITEMS)).item() for scores in (3 * teacher, teacher, -teacher)]
        assert losses == sorted(losses)


def test_every_objective_has_a_contract_test() -> None:
    tested = {type(contract().make()).__name__ for contract in ObjectiveContract.__subclasses__()}
    assert tested == {path.split(":")[1] for path in METHODS.values()}


def test_every_objective_has_its_options() -> None:
    assert OPTIONS.keys() == METHODS.keys()


def test_an_objective_without_weight_is_left_out() -> None:
    assert list(build_objectives({"forward_kl": {"weight": 0.0}, "rrd": {"num_interesting": 5}})) == ["rrd"]
