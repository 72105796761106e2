"""Losses over the catalogue chunk by chunk are those of all scores at once, with the same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distill import catalogue_loss
from distill.catalogue_loss import cross_entropy, over_catalogue

NUM_ROWS, NUM_ITEMS, WIDTH = 7, 11, 4


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden, table = (torch.randn(size, WIDTH, dtype=torch.float64, requires_grad=True) for size in (NUM_ROWS, NUM_ITEMS))
    return hidden, table, torch.randint(NUM_ITEMS, (NUM_ROWS,))


@pytest.fixture(
    params=[1, 2 * NUM_ITEMS, 3 * NUM_ITEMS + 5, NUM_ROWS * NUM_ITEMS, 1 << 22], ids=["row", "two", "three", "all", "more"]
)
def chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Scores of a chunk; of at least one row."""
    monkeypatch.setattr(catalogue_loss, "_MAX_SCORES_CPU", request.param)
    monkeypatch.setattr(catalogue_loss, "_MIN_ROWS", 1)
    return request.param


def test_cross_entropy_beside_other_terms(inputs: tuple[Tensor, Tensor, Tensor], chunked: int) -> None:
    hidden, table, label = inputs
    expected = 3 * F.cross_entropy(hidden @ table.T, label) + hidden.square().sum() + table.sum()
    found = 3 * cross_entropy(hidden, table, label) + hidden.square().sum() + table.sum()
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    for own, same in zip(*(torch.autograd.grad(loss, (hidden, table)) for loss in (found, expected)), strict=True):
        assert torch.allclose(own, same, atol=1e-12)


def test_chunks_are_the_rows_and_no_larger_than_asked(inputs: tuple[Tensor, Tensor, Tensor], chunked: int) -> None:
    hidden, table, _ = inputs
    seen, told = list[int](), list[Tensor]()

    def terms(scores_RI: Tensor, rows: slice) -> dict[str, Tensor]:
        seen.extend(range(NUM_ROWS)[rows])
        told.append(scores_RI)
        return {"loss": scores_RI.sum()} | ({"first": scores_RI[0, 0]} if rows.start == 0 else {"later": scores_RI.sum()})

    found = over_catalogue(hidden, table, terms)
    assert seen == list(range(NUM_ROWS)) and all(len(part) == 1 or part.numel() <= chunked for part in told)
    assert torch.allclose(torch.cat(told), hidden @ table.T)
    assert found["first"].item() == pytest.approx((hidden[0] @ table[0]).item())
    assert ("later" in found) == (len(told) > 1) and not found["first"].requires_grad


def test_what_is_differentiated_twice_is_refused(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, table, label = inputs
    (gradient,) = torch.autograd.grad(cross_entropy(hidden, table, label) ** 2, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_no_scores_of_all_positions_are_ever_held(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, table, largest = torch.randn(64, 8, requires_grad=True), torch.randn(512, 8, requires_grad=True), [0]
    monkeypatch.setattr(catalogue_loss, "_MAX_SCORES_CPU", 4 * 512)
    monkeypatch.setattr(catalogue_loss, "_MIN_ROWS", 1)

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            largest[0] = max(largest[0], found.numel() if isinstance(found, Tensor) else 0)
            return found

    with Watch():
        cross_entropy(hidden, table, torch.arange(64)).backward()
    assert largest[0] == max(4 * 512, table.numel())
