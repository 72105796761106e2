"""The student: causal, blind to padding, the same alone as in a batch, and alike in its training and serving paths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from foundation.artifact import make
from recommender.config import StudentSection
from recommender.student import Student, StudentRecommender, load_student, save_student

SECTION = StudentSection(hidden_size=16, num_layers=2, num_heads=2, max_length=8)


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    student = Student(SECTION, 30, torch.randn(31, 5)).eval()
    with torch.no_grad():  # biases and norms start at 0 and 1, where mistakes do not show
        for parameter in student.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return student


def history(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def test_causal(student: Student) -> None:
    table = student.items()
    one, other = student(history([1, 2, 3, 4]), table), student(history([1, 2, 3, 9]), table)
    assert torch.equal(one[:, :3], other[:, :3])
    assert not torch.allclose(one[:, 3], other[:, 3])


def test_padding_changes_nothing(student: Student) -> None:
    table = student.items()
    alone, padded = student(history([1, 2, 3]), table), student(history([0, 0, 0, 1, 2, 3]), table)
    assert torch.allclose(alone, padded[:, 3:], atol=1e-6)


def test_batch_equals_single(student: Student) -> None:
    table = student.items()
    rows = [[0, 0, 1, 2], [3, 4, 5, 6], [0, 0, 0, 7]]
    batch = student.last_hidden(history(*rows), table)
    assert torch.allclose(batch, torch.cat([student.last_hidden(history(row), table) for row in rows]), atol=1e-6)


def test_serving_path_equals_training_path(student: Student) -> None:
    table = student.items()
    long = torch.randint(1, 31, (3, 20))
    assert torch.allclose(student.last_hidden(long, table), student(long[:, -8:], table)[:, -1], atol=1e-6)


def test_the_first_layer_is_looked_up(student: Student) -> None:
    table, asked = student.items(), torch.tensor([[0.0] * 5, [0.5] * 5, [0.0] * 5])
    first = student.first_layer_table(table)
    for rows in (torch.randint(0, 31, (3, 20)), history([0, 0, 0], [0, 0, 4], [1, 2, 3])):
        for query in (None, asked):
            computed = student.last_hidden(rows, table, query)
            assert torch.allclose(student.last_hidden(rows, table, query, first), computed, atol=1e-5)
    assert not torch.allclose(student.last_hidden(rows, table, None, first * 1.1), student.last_hidden(rows, table), atol=1e-3)
    alone = Student(SECTION.model_copy(update={"num_layers": 1}), 30, None)
    with pytest.raises(ValueError, match="a student of one layer"):
        alone.first_layer_table(alone.items())


def test_position_matters(student: Student) -> None:
    table = student.items()
    assert not torch.allclose(student.last_hidden(history([1, 2, 3]), table), student.last_hidden(history([2, 1, 3]), table))


def test_table_folds_id_and_text(student: Student) -> None:
    items = student.items
    expected = items.id_ID + SECTION.text_scale * items.text_IZ @ items.projection.weight.T
    assert torch.allclose(items()[1:], expected[1:])
    assert (items()[0] == 0).all()


def test_num_parameters_counts_the_folded_table(student: Student) -> None:
    no_text = Student(SECTION, 30, None)
    assert student.num_parameters == no_text.num_parameters == sum(p.numel() for p in no_text.parameters()) - 16


def test_recommender_never_repeats_or_pads(student: Student) -> None:
    index_BK, score_BK = StudentRecommender(student).recommend(np.array([[0, 1, 2], [0, 0, 0]]), 28)
    assert not {0, 1, 2} & set(index_BK[0])
    assert 0 not in index_BK[1]
    assert (np.diff(score_BK) <= 0).all()


def test_saved_and_loaded(student: Student, tmp_path: Path) -> None:
    recipe = {"student": SECTION.model_dump(mode="json")}
    artifact = make(tmp_path / "s", "student", recipe=recipe, inputs={}, build=lambda draft: save_student(student, draft))
    batch = np.array([[1, 2, 3]])
    ours, theirs = (
        StudentRecommender(student).recommend(batch, 5),
        StudentRecommender(load_student(artifact)).recommend(batch, 5),
    )
    assert (ours[0] == theirs[0]).all()
    assert (ours[1] == theirs[1]).all()


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"student.num_heads"):
        Student(StudentSection(hidden_size=10, num_heads=4), 5, None)
