"""Each objective against its contract, and against what only it promises."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch

from distill.objectives import METHODS, build_objectives, build_state_objectives
from distill.objectives.base import Objective, TeacherTargets
from distill.objectives.config import (
    OPTIONS,
    Dllm2RecOptions,
    HiddenOptions,
    MiniLmOptions,
    ObjectiveOptions,
    RceKdOptions,
    RrdOptions,
    states_needed,
)
from distill.objectives.dllm2rec import ImportanceAwareRanking
from distill.objectives.forward_kl import ForwardKL
from distill.objectives.hidden import HiddenAlignment
from distill.objectives.minilm import SelfAttentionRelations
from distill.objectives.rce_kd import RejuvenatedCrossEntropy
from distill.objectives.rrd import RelaxedRanking
from tests.contracts import NUM_ITEMS, STUDENT_WIDTH, TEMPERATURE, ObjectiveContract, StateObjectiveContract


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
        losses = [self.loss(student, self.targets(teacher, k)).item() for k in (1, 3, 6, NUM_ITEMS)]
        assert losses == sorted(losses)
        full = torch.nn.functional.kl_div(
            (student / TEMPERATURE).log_softmax(-1),
            (teacher / TEMPERATURE).log_softmax(-1),
            log_target=True,
            reduction="batchmean",
        )
        assert losses[-1] == pytest.approx(full.item() * TEMPERATURE**2, rel=1e-9)

    @pytest.mark.parametrize("above", [0.0, 20.0, 35.0, 60.0])
    def test_what_is_left_to_the_rest_is_not_lost_in_float32(self, above: float) -> None:
        """A student surer than its teacher of the 20 items that are kept, of 2,000."""
        student = torch.randn(4, 2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        student[:, :20] += above
        targets = TeacherTargets(
            torch.arange(20).expand(4, 20), torch.full((4, 20), 0.9 / 20, dtype=torch.float64), TEMPERATURE
        )
        found = []
        for precision in (torch.float32, torch.float64):
            own = student.to(precision).requires_grad_()
            loss = self.loss(own, TeacherTargets(targets.index_NK, targets.probability_NK.to(precision), TEMPERATURE))
            found.append((loss.double(), torch.autograd.grad(loss, own)[0].double()))
        (loss, gradient), (expected, expected_gradient) = found
        assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
        assert torch.allclose(gradient, expected_gradient, atol=1e-3 * expected_gradient.abs().max().item())


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

    def test_gradients_where_a_part_is_drawn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two of the list's five, and two of the rest: against the likelihood of their order over those four alone."""
        monkeypatch.setattr("distill.objectives.rrd.draw", lambda weights_NK, number: weights_NK.topk(number).indices)
        below = [[i for i in range(NUM_ITEMS) if i not in row][:2] for row in self.targets(self.logits(1), 5).index_NK.tolist()]
        monkeypatch.setattr(RelaxedRanking, "_uninteresting", lambda *_: torch.tensor(below))
        fast, slow, targets = self.logits(2).requires_grad_(), self.logits(2).requires_grad_(), self.targets(self.logits(1), 5)
        loss = RelaxedRanking(RrdOptions(num_interesting=2, num_uninteresting=2))(fast.log_softmax(-1), targets)
        total = torch.zeros((), dtype=torch.float64)
        for n, listed in enumerate(targets.index_NK[:, :2].tolist()):
            for k, i in enumerate(listed):
                total = total - torch.log(slow[n, i].exp() / slow[n, listed[k:] + below[n]].exp().sum())
        expected = total / len(slow)
        loss.backward()
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert fast.grad is not None and torch.allclose(fast.grad, slow.grad, atol=1e-7)

    def test_one_draw_weight_is_as_stated(self) -> None:
        torch.manual_seed(0)
        drawn_N1 = RelaxedRanking(RrdOptions(num_interesting=1, rank_temperature=3.0))._interesting(
            torch.arange(4).expand(20_000, 4)
        )
        expected = torch.softmax(-torch.arange(1.0, 5) / 3.0, 0)
        assert torch.allclose(torch.bincount(drawn_N1.flatten()) / 20_000, expected, atol=0.015)

    def test_the_teachers_own_order_is_the_likeliest(self) -> None:
        teacher = self.logits(1)
        losses = [self.loss(scores, self.targets(teacher, NUM_ITEMS)).item() for scores in (3 * teacher, teacher, -teacher)]
        assert losses == sorted(losses)


class TestImportanceAwareRanking(ObjectiveContract):
    """It is 0 where the student equals the weights, which are not the teacher."""

    def test_it_is_0_where_the_student_equals_the_weights(self) -> None:
        objective = ImportanceAwareRanking(Dllm2RecOptions(num_listed=NUM_ITEMS, consistency=0.0))
        teacher = self.logits(1)
        targets = self.targets(teacher, NUM_ITEMS)
        weight_NK = objective._importance(torch.zeros_like(teacher), targets.index_NK, targets.probability_NK)
        equal_NI = torch.zeros_like(teacher).scatter(-1, targets.index_NK, weight_NK.log())
        assert objective(equal_NI, targets).item() == pytest.approx(0, abs=1e-9)
        assert objective(teacher.log_softmax(-1), targets).item() > 0.01

    zero_at_equality = False
    options = Dllm2RecOptions(num_listed=5, num_consistent=3, rank_temperature=2.0, confidence_temperature=1.5)

    def make(self) -> Objective:
        return ImportanceAwareRanking(self.options)

    def reference(
        self, student_logits_NI: torch.Tensor, teacher_logits_NI: torch.Tensor, targets: TeacherTargets
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for n in range(len(student_logits_NI)):
            listed = targets.index_NK[n].tolist()[:5]
            own = sorted(range(NUM_ITEMS), key=lambda i: -student_logits_NI[n, i].item())[:3]
            position = [math.exp(-r / 2.0) for r in range(1, len(listed) + 1)]
            confidence = [p ** (1 / 1.5) for p in targets.probability_NK[n].tolist()[:5]]
            consistency = [float(i in own) for i in listed]
            weights = [0.1 * x for x in consistency]
            for gamma, part in ((0.3, position), (0.5, confidence)):
                weights = [w + gamma * x / sum(part) for w, x in zip(weights, part, strict=True)]
            q = torch.softmax(student_logits_NI[n], 0)
            for i, weight in zip(listed, weights, strict=True):
                share = weight / sum(weights)
                total = total + share * (math.log(share) - torch.log(q[i]))
        return total / len(student_logits_NI)

    def test_what_it_weighs(self) -> None:
        index_NK, probability_NK = torch.tensor([[4, 2, 7]]), torch.tensor([[0.6, 0.2, 0.1]])
        student = torch.zeros(1, 10).index_fill(1, torch.tensor([7]), 1.0)

        def weights(position: float, confidence: float, consistency: float) -> torch.Tensor:
            options = Dllm2RecOptions(
                position=position, confidence=confidence, consistency=consistency, num_consistent=1, rank_temperature=1.0
            )
            return ImportanceAwareRanking(options)._importance(student, index_NK, probability_NK)[0]

        assert torch.allclose(weights(1, 0, 0), torch.softmax(torch.tensor([-1.0, -2.0, -3.0]), 0))
        assert torch.allclose(weights(0, 1, 0), torch.tensor([0.6, 0.2, 0.1]) / 0.9)
        assert torch.allclose(weights(0, 1, 1), (torch.tensor([0.6, 0.2, 0.1]) / 0.9 + torch.tensor([0.0, 0.0, 1.0])) / 2)
        student = torch.zeros(1, 10).index_fill(1, torch.tensor([7, 2]), 1.0)
        both = ImportanceAwareRanking(Dllm2RecOptions(num_consistent=2, position=0, confidence=1, consistency=1))
        agreed = torch.tensor([0.6, 0.2, 0.1]) / 0.9 + torch.tensor([0.0, 1.0, 1.0])  # each for itself, however many
        assert torch.allclose(both._importance(student, index_NK, probability_NK)[0], agreed / 3)

    def test_no_weight_at_all_is_refused(self) -> None:
        with pytest.raises(ValueError, match="cannot both be 0"):
            Dllm2RecOptions(position=0, confidence=0)


class TestRejuvenatedCrossEntropy(ObjectiveContract):
    """With the whole of the student's list drawn nothing is left to chance."""

    zero_at_equality = False  # items outside the stored list share what is left evenly, which the teacher did not say
    num_drawn = 8

    def make(self) -> Objective:
        options = RceKdOptions(num_top=4, num_candidates=8, num_drawn=self.num_drawn, overlap_weight=0.7)
        return RejuvenatedCrossEntropy(options)

    def reference(
        self, student_logits_NI: torch.Tensor, teacher_logits_NI: torch.Tensor, targets: TeacherTargets
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for n in range(len(student_logits_NI)):
            stored = dict(zip(targets.index_NK[n].tolist(), targets.probability_NK[n].tolist(), strict=True))
            rest = NUM_ITEMS - len(stored)
            p = [stored.get(i, max(1 - sum(stored.values()), 1e-12) / max(rest, 1)) for i in range(NUM_ITEMS)]
            score_I = student_logits_NI[n] / TEMPERATURE
            ranked = sorted(range(NUM_ITEMS), key=lambda i: -score_I[i].item())
            first = set(targets.index_NK[n].tolist()[:4])
            own, other = ranked[: len(first)], sorted(first - set(ranked[: len(first)]) | set(ranked[: self.num_drawn]))
            gamma = math.exp(-0.7 * len(first & set(own)) / len(first))
            for share, part in ((1 - gamma, own), (gamma, other)):
                mass = sum(p[i] for i in part)
                for i in part:
                    log_ratio = math.log(p[i] / mass) - (score_I[i] - score_I[part].logsumexp(0))
                    total = total + share * p[i] / mass * log_ratio
        return total / len(student_logits_NI) * TEMPERATURE**2

    def test_zero_where_student_and_teacher_are_one(self) -> None:
        teacher = self.logits(1)
        assert self.loss(teacher, self.targets(teacher, NUM_ITEMS)).item() == pytest.approx(0, abs=1e-7)

    def test_the_second_part_is_what_only_the_teacher_has_and_what_is_drawn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        student = torch.tensor([[9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]], dtype=torch.float64)
        targets = TeacherTargets(torch.tensor([[0, 3, 7]]), torch.tensor([[0.5, 0.3, 0.1]], dtype=torch.float64), 1.0)
        monkeypatch.setattr("distill.objectives.rce_kd.draw", lambda weights, number: torch.tensor([[4]]))
        objective = RejuvenatedCrossEntropy(RceKdOptions(num_top=3, num_candidates=5, num_drawn=1))
        p = [0.5, 0.02, 0.02, 0.3, 0.02, 0.02, 0.02, 0.1]
        gamma, expected = math.exp(-1 / 3), 0.0
        for share, part in ((1 - gamma, [0, 1, 2]), (gamma, [3, 7, 4])):  # Qs; of Qt what Qs has not, and the item drawn
            mass, log_z = sum(p[i] for i in part), student[0, part].logsumexp(0).item()
            expected += share * sum(p[i] / mass * (math.log(p[i] / mass) - student[0, i].item() + log_z) for i in part)
        assert objective(student.log_softmax(-1), targets).item() == pytest.approx(expected, rel=1e-6)

    def test_drawn_are_those_above_many_of_the_teachers(self) -> None:
        torch.manual_seed(0)
        objective = RejuvenatedCrossEntropy(RceKdOptions(num_candidates=80, num_drawn=10))
        from_teacher_NC = torch.zeros(500, 80, dtype=torch.bool)
        from_teacher_NC[:, 20:40] = True  # 20 items of the teacher are at the student's ranks 21 to 40
        drawn_NL = objective._drawn(from_teacher_NC)
        assert drawn_NL.shape == (500, 10) and all(len(set(row)) == 10 for row in drawn_NL.tolist())
        counts = torch.bincount(drawn_NL.flatten(), minlength=80).float()
        above, among, below = counts[:20].mean(), counts[20:40].mean(), counts[40:].mean()
        assert above > among > below
        assert 4 < above / below < 8.0  # weights e^2.1 and e^0.1, less what drawing without replacement evens out


class TestRejuvenatedCrossEntropyOfThreeDrawn(TestRejuvenatedCrossEntropy):
    """The same where chance, which here takes the student's first, leaves some of the list out."""

    num_drawn = 3

    @pytest.fixture(autouse=True)
    def the_first_are_drawn(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        if "drawn" not in request.function.__name__:
            first = lambda weights_NC, number: torch.arange(number).expand(len(weights_NC), number)  # noqa: E731
            monkeypatch.setattr("distill.objectives.rce_kd.draw", first)


class TestHiddenAlignment(StateObjectiveContract):
    widths: Mapping[str, int] = {"hidden": 20}

    def make(self, teacher_widths: Mapping[str, int]) -> HiddenAlignment:
        return HiddenAlignment(HiddenOptions(cosine=0.7, squared=0.4), self.same, teacher_widths)

    def reference(self, student: list[dict[str, torch.Tensor]], teacher: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for own, other in zip(student, teacher, strict=True):
            for s, t in zip(own["hidden"], other["hidden"], strict=True):
                total = total + 0.7 * (1 - s @ t / (s.norm() * t.norm())) + 0.4 * ((s - t) ** 2).sum() / len(s)
        return total / sum(self.lengths)

    def test_equals_its_slow_reference_through_a_projector(self) -> None:
        teacher, keep = self.states(self.widths, 1), self.keep()
        fast, slow = (self.states(self.same, 2)["hidden"].requires_grad_() for _ in range(2))
        objective = self.make(self.widths).double()
        (weight,) = objective.parameters()
        loss = objective({"hidden": fast}, teacher, keep)
        expected = torch.zeros((), dtype=torch.float64)
        for s, t in zip(slow, teacher["hidden"], strict=True):
            projected = torch.stack([sum((w * x for w, x in zip(row, s, strict=True)), torch.zeros(())) for row in weight])
            cosine = (projected * t).sum() / (projected.norm() * t.norm())
            expected = expected + 0.7 * (1 - cosine) + 0.4 * ((projected - t) ** 2).sum() / len(t)
        expected = expected / sum(self.lengths)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
        found = torch.autograd.grad(loss, (fast, weight)), torch.autograd.grad(expected, (slow, weight))
        for own, other in zip(*found, strict=True):
            assert torch.allclose(own, other, atol=1e-9)

    def test_a_projector_only_where_widths_differ(self) -> None:
        assert not list(self.make(self.same).parameters())
        assert [tuple(p.shape) for p in self.make(self.widths).parameters()] == [(20, STUDENT_WIDTH)]

    def test_no_weight_at_all_is_refused(self) -> None:
        with pytest.raises(ValueError, match="cannot both be 0"):
            HiddenOptions(cosine=0, squared=0)


class TestSelfAttentionRelations(StateObjectiveContract):
    widths: Mapping[str, int] = {"query": 12, "key": 4, "value": 6}

    def make(self, teacher_widths: Mapping[str, int]) -> SelfAttentionRelations:
        return SelfAttentionRelations(MiniLmOptions(relation_heads=2), self.same, teacher_widths)

    def reference(self, student: list[dict[str, torch.Tensor]], teacher: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for own, other in zip(student, teacher, strict=True):
            for part in self.widths:
                for s, t in zip(own[part].chunk(2, dim=-1), other[part].chunk(2, dim=-1), strict=True):
                    for i in range(len(s)):
                        q, p = ((x[: i + 1] @ x[i] / math.sqrt(x.shape[-1])).softmax(0) for x in (s, t))
                        total = total + (p * (p / q).log()).sum() / 2 / 3
        return total / sum(self.lengths)

    def test_heads_that_do_not_divide_a_width_are_refused(self) -> None:
        with pytest.raises(ValueError, match="relation_heads = 2 does not divide the teacher's key of 5"):
            self.make({"query": 12, "key": 5, "value": 6})


def test_every_objective_has_a_contract_test() -> None:
    tested = {type(contract().make()).__name__ for contract in ObjectiveContract.__subclasses__()}
    tested |= {type(contract().make(contract().same)).__name__ for contract in StateObjectiveContract.__subclasses__()}
    assert tested == {path.split(":")[1] for path in METHODS.values()}


def test_every_objective_has_its_options() -> None:
    assert OPTIONS.keys() == METHODS.keys()


def test_an_objective_without_weight_is_left_out() -> None:
    sections = {"forward_kl": {"weight": 0.0}, "rrd": {"num_interesting": 5}, "hidden": {}, "minilm": {"weight": 0.0}}
    assert list(build_objectives(sections)) == ["rrd"]
    assert states_needed(sections) == ["hidden"]
    assert list(build_state_objectives(sections, 8, {"hidden": 4})) == ["hidden"]
