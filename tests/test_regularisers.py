"""Each regulariser against its contract, a slow definition, and what only it promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.regularisers import METHODS, build_regularisers
from distill.regularisers.base import Regulariser, Step
from distill.regularisers.config import (
    OPTIONS,
    HistoryContrastOptions,
    TextAlignmentOptions,
)
from distill.regularisers.history_contrast import CROP, MASK, OPERATIONS, HistoryContrast
from distill.regularisers.text_alignment import TextAlignment, alignment, uniformity
from tests.contracts import RegulariserContract


def double(step: Step) -> Step:
    step.student.double()
    return replace(step, table_ID=step.student.items())


def assert_gradients_agree(step: Step, loss: Tensor, expected: Tensor) -> None:
    parameters = list(step.student.parameters())
    pairs = zip(
        *(torch.autograd.grad(of, parameters, allow_unused=True, retain_graph=True) for of in (loss, expected)), strict=True
    )
    seen = [(own, other) for own, other in pairs if own is not None or other is not None]
    assert seen
    for own, other in seen:
        assert own is not None and other is not None
        assert torch.allclose(own, other, rtol=1e-6, atol=1e-10)


UNCHANGED = HistoryContrast(HistoryContrastOptions(crop=1.0, mask=0.0, reorder=0.0, temperature=0.7))  # views are the histories


class TestHistoryContrast(RegulariserContract):
    def make(self) -> HistoryContrast:
        return HistoryContrast(HistoryContrastOptions(temperature=0.7))

    def test_equals_its_slow_definition(self) -> None:
        step = double(self.step())
        torch.manual_seed(1)
        drawn = torch.randint(len(OPERATIONS), (2, len(step.history_BL), 1))
        views = [self.make().view(step.history_BL, operation_B1) for operation_B1 in drawn]
        assert not all(torch.equal(view_BL * kept_BL, step.history_BL) for view_BL, kept_BL in views)
        state_V = []
        for view_BL, kept_BL in views:
            item_BLD = F.embedding(view_BL, step.table_ID) * kept_BL[..., None]
            state_V += [F.normalize(state_D, dim=0) for state_D in step.student.encode(item_BLD, view_BL != 0)[:, -1]]
        total, number = torch.zeros((), dtype=torch.float64), len(state_V)
        for one in range(number):
            similar = [torch.exp(state_V[one] @ other_D / 0.7) for other_D in state_V]
            total = total - torch.log(similar[(one + number // 2) % number] / (sum(similar) - similar[one]))
        loss = self.loss(step, seed=1)
        assert loss.item() == pytest.approx(total.item() / number, rel=1e-6)
        assert_gradients_agree(step, loss, total / number)

    def test_padding_and_the_order_of_histories_do_not_matter(self) -> None:
        step = double(self.step())
        loss = UNCHANGED(step).item()
        for other in self.changed(step):
            assert UNCHANGED(other).item() == pytest.approx(loss, rel=1e-9)

    def test_histories_of_the_same_user_or_items_are_no_negatives(self) -> None:
        step = double(self.step(3))
        history_BL = step.history_BL.clone()
        history_BL[2] = history_BL[0]
        alike = replace(step, history_BL=history_BL)
        one_user = replace(step, user_B=torch.tensor([4, 5, 4]))
        for found in (alike, one_user):
            state_BD = F.normalize(found.student(found.history_BL, found.table_ID)[:, -1].detach(), dim=-1)
            similar_BB = (state_BD @ state_BD.T / 0.7).exp()
            total = sum(
                torch.log(similar_BB[one, one] + 2 * sum(similar_BB[one, other] for other in others))
                - similar_BB[one, one].log()
                for one, others in ((0, [1]), (1, [0, 2]), (2, [1]))
            )
            assert UNCHANGED(found).item() == pytest.approx(float(total) / 3, rel=1e-6)

    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_views(self, operation: int) -> None:
        history_BL = torch.cat([torch.zeros(300, 2, dtype=torch.long), torch.arange(1, 11).expand(300, 10)], dim=1)
        torch.manual_seed(0)
        view_BL, kept_BL = HistoryContrast(HistoryContrastOptions()).view(history_BL, torch.full((300, 1), operation))
        assert view_BL.shape == history_BL.shape and len({tuple(row) for row in torch.where(kept_BL, view_BL, 0).tolist()}) > 4
        for items, kept in zip(view_BL.tolist(), kept_BL.tolist(), strict=True):
            if operation == CROP:
                run = [item for item in items if item]
                assert run == list(range(run[0], run[0] + 6)) and items[-6:] == run and sum(kept) == 6
            elif operation == MASK:
                assert items == history_BL[0].tolist() and sum(kept[2:]) == 7
            else:
                moved = [place for place in range(2, 12) if items[place] != place - 1]
                assert sorted(items) == sorted(history_BL[0].tolist()) and kept[2:] == [True] * 10
                assert not moved or max(moved) - min(moved) < 6


class TestTextAlignment(RegulariserContract):
    def make(self) -> TextAlignment:
        return TextAlignment(TextAlignmentOptions(temperature=0.5))

    def test_equals_its_slow_definition(self) -> None:
        step = self.step()
        first, second, blind = step.label_BL[0, :3].tolist()
        step.student.items.text_IZ[second] = 2 * step.student.items.text_IZ[first]  # the same text
        step.student.items.text_IZ[blind] = 0
        step = double(step)
        items = sorted(set(step.label_BL[step.label_BL > 0].tolist()) - {blind})
        table = step.student.items
        by_text = {i: F.normalize(table.of_text(table.text_IZ[i : i + 1])[0], dim=0) for i in items}
        by_id = {i: F.normalize(table.id_ID[i], dim=0) for i in items}
        total = torch.zeros((), dtype=torch.float64)
        for i in items:
            others = [j for j in items if {i, j} != {first, second}]
            for one, other in ((by_text, by_id), (by_id, by_text)):
                scores = [torch.exp(one[i] @ other[j] / 0.5) for j in others]
                total = total - torch.log(scores[others.index(i)] / sum(scores)) / 2
        loss = self.make()(step)
        assert loss.item() == pytest.approx(total.item() / len(items), rel=1e-6)
        assert_gradients_agree(step, loss, total / len(items))

    def test_padding_and_the_order_of_histories_do_not_matter(self) -> None:
        step = double(self.step())
        loss = self.make()(step).item()
        for other in self.changed(step):
            assert self.make()(other).item() == pytest.approx(loss, rel=1e-9)


def test_alignment_and_uniformity() -> None:
    one = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    assert alignment(one, 2 * one) == pytest.approx(0) and alignment(one, -one) == pytest.approx(4)
    assert uniformity(one) == pytest.approx(-4)  # one pair, at a squared distance of 2
    assert uniformity(torch.ones(10, 3)) == pytest.approx(0, abs=1e-6)
    even = F.normalize(torch.randn(5000, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert -4 < uniformity(even) < -3.5


def test_every_regulariser_has_a_contract_test_and_options() -> None:
    tested = {type(contract().make()).__name__ for contract in RegulariserContract.__subclasses__()}
    assert tested == {path.split(":")[1] for path in METHODS.values()}
    assert OPTIONS.keys() == METHODS.keys()


def test_what_an_arm_takes() -> None:
    sections = {"history_contrast": {}, "text_alignment": {"temperature": 0.2}}
    assert list(build_regularisers(sections, has_text=True)) == ["history_contrast", "text_alignment"]
    assert list(build_regularisers(sections | {"history_contrast": {"weight": 0.0}}, has_text=True)) == ["text_alignment"]
    without: dict[str, Regulariser] = build_regularisers(sections, has_text=False)
    assert list(without) == ["history_contrast"]
