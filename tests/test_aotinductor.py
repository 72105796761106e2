"""The student compiled by AOTInductor: what PyTorch answers, from machine code that is opened by its digest alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from export.aotinductor import write_package
from export.config import ExportSection
from export.parity import ParityError
from foundation.artifact import Artifact, ArtifactError, Unavailable, make, sha256_file
from recommender.config import StudentSection
from recommender.runtimes.aotinductor import PACKAGE, AotInductorRecommender
from recommender.split import Sequences
from recommender.student import Student, StudentRecommender, load_student, save_student

SECTION = ExportSection(k=10, parity_histories=60, inputs=["exclude", "candidates", "query"])


@pytest.fixture(scope="module")
def student(sequences: Sequences, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    section = StudentSection(hidden_size=16, num_layers=2, max_length=10)

    def build(draft) -> None:
        torch.manual_seed(0)
        save_student(Student(section, sequences.num_items, torch.randn(sequences.num_items + 1, 6)), draft)

    recipe = {"student": section.model_dump(mode="json")}
    return make(tmp_path_factory.mktemp("student") / "s", "student", recipe=recipe, inputs={}, build=build)


@pytest.fixture(scope="module")
def package(student: Artifact, sequences: Sequences, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler")
    out = tmp_path_factory.mktemp("package") / "p"
    return out, write_package(student, sequences, SECTION, out)["sha256"]


def test_a_package_answers_as_pytorch_does(package: tuple[Path, str], student: Artifact) -> None:
    out, sha256 = package
    compiled, eager = AotInductorRecommender(out / PACKAGE, sha256), StudentRecommender(load_student(student))
    rng = np.random.default_rng(0)
    for batch, length in ((1, 1), (3, 7), (2, 10), (5, 11), (4, 40)):
        history_BL = rng.integers(0, 40, (batch, length))
        expected, found = eager.recommend(history_BL, 10), compiled.recommend(history_BL, 10)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_allclose(found[1], expected[1], atol=1e-5)


def test_its_inputs_are_the_graphs(package: tuple[Path, str]) -> None:
    out, sha256 = package
    compiled = AotInductorRecommender(out / PACKAGE, sha256)
    assert compiled.inputs == {"exclude": -1, "candidates": -1, "query": 6} and compiled.k == 10
    history_BL = np.array([[1, 2, 3]])
    first = compiled.recommend(history_BL, 10)[0][0, 0]
    assert first not in compiled.recommend(history_BL, 10, exclude=np.array([[first, 0]]))[0]
    narrowed = compiled.recommend(history_BL, 10, candidates=np.array([[9, 8, 7, 3]]))[0][0]
    assert set(narrowed.tolist()) == {7, 8, 9, 0}  # 3 was seen
    assert len(json.loads((out / "item_ids.json").read_bytes())) == len(compiled.item_ids())


def test_code_that_is_not_the_named_one_is_not_loaded(package: tuple[Path, str], tmp_path: Path) -> None:
    out, sha256 = package
    changed = tmp_path / PACKAGE
    changed.write_bytes((out / PACKAGE).read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match="machine code and is not loaded"):
        AotInductorRecommender(changed, sha256)
    assert sha256_file(out / PACKAGE) == sha256


def test_what_is_there_is_not_replaced_and_what_ranks_differently_not_kept(
    student: Artifact, sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="is not replaced"):
        write_package(student, sequences, SECTION, tmp_path / "there")
    monkeypatch.setattr("export.aotinductor.compile_graph", lambda graph, inputs, out: out.write_bytes(b"code"))
    wrong = StudentRecommender(load_student(student))
    wrong.table_ID = wrong.table_ID.flip(0)
    monkeypatch.setattr("export.aotinductor.AotInductorRecommender", lambda package, sha256: wrong)
    with pytest.raises(ParityError, match="the package in AOTInductor"):
        write_package(student, sequences, SECTION, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_machine_without_a_compiler_is_told(
    student: Artifact, sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.aotinductor.shutil.which", lambda name: None)
    with pytest.raises(Unavailable, match=r"install g\+\+"):
        write_package(student, sequences, SECTION, tmp_path / "p")
