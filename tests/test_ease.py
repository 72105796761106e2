"""EASE: the closed form is the minimum it is said to be, text joins it as more users would, a member says what it scores."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from distill.config import EaseSection
from distill.ease import WEIGHTS, Ease, build_ease, fit_ease
from distill.evaluation import kept_ranks
from distill.members import Ensemble, open_member
from foundation.artifact import Artifact, ArtifactError, make
from recommender.data import load_dataset
from recommender.evaluate import evaluate
from recommender.split import Sequences, build_sequences

L2 = 3.0


@pytest.fixture(scope="module")
def sequences(dataset: Artifact) -> Sequences:
    return build_sequences(load_dataset(dataset))


@pytest.fixture(scope="module")
def text_IZ(sequences: Sequences) -> np.ndarray:
    text_IZ = np.random.default_rng(0).normal(size=(sequences.num_items + 1, 7)).astype(np.float32)
    text_IZ[0] = 0
    return text_IZ


def taken(sequences: Sequences) -> np.ndarray:
    """Users by items, without padding."""
    taken_UI = np.zeros((sequences.num_users, sequences.num_items))
    for u in range(sequences.num_users):
        taken_UI[u, sequences.train(u) - 1] = 1
    return taken_UI


def slow(rows_RI: np.ndarray, l2: float) -> np.ndarray:
    """Column by column: ridge regression of an item on all others, in float64."""
    num_items = rows_RI.shape[1]
    weight_II = np.zeros((num_items, num_items))
    for item in range(num_items):
        others = np.delete(np.arange(num_items), item)
        known = rows_RI[:, others]
        gram = known.T @ known + l2 * np.eye(len(others))
        weight_II[others, item] = np.linalg.solve(gram, known.T @ rows_RI[:, item])
    return weight_II


def test_every_column_is_the_ridge_regression_of_an_item_on_the_others(sequences: Sequences) -> None:
    np.testing.assert_allclose(fit_ease(sequences, L2).cpu(), slow(taken(sequences), L2), atol=1e-4)


def test_a_dimension_of_text_is_as_many_more_users(sequences: Sequences, text_IZ: np.ndarray) -> None:
    unit_IZ = text_IZ[1:] / np.linalg.norm(text_IZ[1:], axis=1, keepdims=True)
    rows_RI = np.concatenate([taken(sequences), np.sqrt(5.0) * unit_IZ.T])
    found_II = fit_ease(sequences, L2, 5.0, text_IZ)
    np.testing.assert_allclose(found_II.cpu(), slow(rows_RI, L2), atol=1e-4)
    assert (found_II - fit_ease(sequences, L2)).abs().max() > 0.01


@pytest.fixture(scope="module")
def ease() -> Ease:
    weight_II = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).fill_diagonal_(0)
    return Ease(weight_II, 4)


def test_scores_are_the_sum_over_the_history_so_far(ease: Ease) -> None:
    history_BL = torch.tensor([[0, 0, 3, 1], [2, 5, 4, 6]])
    keep_BL = torch.tensor([[False, False, True, True], [True, False, False, True]])
    score_NI, held = ease.see(history_BL, keep_BL)
    histories = [[3], [3, 1], [2], [2, 5, 4, 6]]
    expected = torch.stack([ease.weight_II[torch.tensor(items) - 1].sum(0) for items in histories])
    torch.testing.assert_close(score_NI, expected)
    assert not held


@pytest.mark.parametrize("recency", [0.01, 1.5, 1e9])
def test_older_items_count_less(ease: Ease, recency: float) -> None:
    history_BL = torch.tensor([[0, 0, 3, 1], [2, 5, 4, 6]])
    keep_BL = torch.tensor([[False, False, True, True], [False, False, False, True]])
    found_NI, _ = Ease(ease.weight_II, 4, recency).see(history_BL, keep_BL)
    for found_I, items in zip(found_NI, ([3], [3, 1], [2, 5, 4, 6]), strict=True):
        ages = range(len(items) - 1, -1, -1)
        expected_I = sum(math.exp(-age / recency) * ease.weight_II[item - 1] for age, item in zip(ages, items, strict=True))
        torch.testing.assert_close(found_I, expected_I)


def test_its_scores_are_added_to_the_mean_of_the_others(ease: Ease) -> None:
    class Other:
        def __init__(self, log_p_I: Tensor) -> None:
            self.log_p_I, self.max_length = log_p_I, 3

        def see(self, history_BL: Tensor, keep_BL: Tensor, states: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
            return self.log_p_I.expand(int(keep_BL.sum()), -1), dict.fromkeys(states, self.log_p_I)

    one_I, other_I = torch.randn(2, 6, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    history_BL, keep_BL = torch.tensor([[0, 2, 5]]), torch.tensor([[False, True, True]])
    together = Ensemble([(1.0, Other(one_I)), (40.0, ease), (3.0, Other(other_I))])
    found_NI, held = together.see(history_BL, keep_BL, ["hidden"])
    torch.testing.assert_close(found_NI, one_I / 4 + other_I * 3 / 4 + 40 * ease.see(history_BL, keep_BL)[0])
    assert together.max_length == 3 and set(held) == {"hidden"}
    torch.testing.assert_close(Ensemble([(7.0, ease)]).see(history_BL, keep_BL)[0], 7 * ease.see(history_BL, keep_BL)[0])


def test_what_is_recommended_is_what_is_taught(ease: Ease) -> None:
    history_BL = np.array([[0, 0, 3, 1], [2, 5, 4, 6], [0, 0, 0, 0]])
    keep_BL = torch.zeros(3, 4, dtype=torch.bool)
    keep_BL[:, -1] = True
    score_BI, _ = ease.see(torch.from_numpy(history_BL), keep_BL)
    score_BI[0, [2, 0]] = score_BI[1, [1, 4, 3, 5]] = -torch.inf
    items_BK, best_BK = ease.recommend(history_BL, 2)
    assert (items_BK[:2] == score_BI[:2].topk(2, dim=-1).indices.numpy() + 1).all()
    assert (best_BK[2] == 0).all(), "nothing speaks for an item where there is no history"


def test_only_the_last_items_are_read(ease: Ease) -> None:
    whole, last = (ease.recommend(np.array([items]), 2) for items in ([3, 2, 3, 1, 6], [2, 3, 1, 6]))
    assert (whole[0] == last[0]).all() and (whole[1] == last[1]).all()


def test_the_artefact_opens_as_a_member_and_is_as_good_as_it_says(
    sequences: Sequences, text_IZ: np.ndarray, tmp_path: Path
) -> None:
    section = EaseSection(l2=L2, text_weight=5.0, recency=2.0)
    made = make(
        tmp_path / "ease",
        "ease-text",
        recipe={"ease": section.model_dump(), "max_length": 9},
        inputs={},
        build=lambda draft: build_ease(sequences, section, 9, draft, text_IZ),
    )
    member = open_member(made)
    assert isinstance(member, Ease) and (member.max_length, member.recency) == (9, 2.0)
    torch.testing.assert_close(member.weight_II, fit_ease(sequences, L2, 5.0, text_IZ))
    assert made.metrics["num_parameters"] == sequences.num_items * (sequences.num_items - 1)
    assert (kept_ranks(made, "test") == evaluate(member, sequences, "test")).all()


@pytest.mark.parametrize(
    ("weight_II", "length", "recency", "message"),
    [
        (torch.zeros(4, 5), 9, 1.0, "not float32, items x items"),
        (torch.zeros(4, 4, dtype=torch.float16), 9, 1.0, "not float32, items x items"),
        (torch.zeros(4, 4), 0, 1.0, "max_length = 0 is no number of items"),
        (torch.zeros(4, 4), 9, 0.0, r"recency = 0\.0 is no number of items above 0"),
    ],
)
def test_what_is_no_such_model_is_refused(weight_II: Tensor, length: int, recency: float, message: str, tmp_path: Path) -> None:
    recipe = {"ease": {"recency": recency}, "max_length": length}
    write = lambda draft: save_file({"weight": weight_II}, draft.path / WEIGHTS)  # noqa: E731
    made = make(tmp_path / "ease", "ease", recipe=recipe, inputs={}, build=write)
    with pytest.raises(ArtifactError, match=message):
        open_member(made)


def test_a_catalogue_too_large_for_all_pairs_is_refused(sequences: Sequences, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.ease._MAX_ITEMS", 5)
    with pytest.raises(ValueError, match=r"leave it out of targets\.members"):
        fit_ease(sequences, L2)


def test_too_little_regularisation_is_named(sequences: Sequences, text_IZ: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"ease\.l2 = 1e-06 is too little .* raise it"):
        fit_ease(sequences, 1e-6, 1e9, text_IZ)


def test_it_is_right_or_refused_whatever_the_regularisation() -> None:
    """An item that two users in three have beside a copy of it: the smaller l2, the nearer to singular."""
    histories = [np.array([1, 2, 3 + u % 5, 9, 9]) if u % 3 else np.array([3 + u % 5, 8, 9]) for u in range(3000)]
    offsets = np.cumsum([0, *map(len, histories)])
    twins = Sequences([str(u) for u in range(3000)], [str(i) for i in range(9)], offsets, np.concatenate(histories))
    refused = []
    for l2 in 10.0 ** np.arange(2, -8, -0.5):
        try:
            found_II = fit_ease(twins, l2)
        except ValueError:
            refused.append(l2)
        else:
            np.testing.assert_allclose(found_II.cpu(), slow(taken(twins), l2), atol=0.05)
    assert refused and max(refused) < 1


def test_it_has_no_states(ease: Ease) -> None:
    with pytest.raises(ValueError, match="name another member first"):
        ease.see(torch.tensor([[1]]), torch.tensor([[True]]), ["hidden"])
