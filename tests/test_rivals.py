"""What the exported graph is compared with for speed gives the same lists: only the time differs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from benchmark.baselines import METHODS, apart
from benchmark.baselines.eager import TorchRecommender
from benchmark.baselines.plain_graph import PlainGraph, to_plain_onnx
from benchmark.variants import open_variant
from export.config import ExportSection
from export.graph import ServingGraph
from foundation.artifact import Artifact, make
from recommender.config import StudentSection
from recommender.runtimes.base import GRAPH
from recommender.runtimes.onnxruntime import OnnxRecommender
from recommender.student import Student, StudentRecommender, load_student, save_student

K, NUM_ITEMS = 20, 300


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    section = StudentSection(hidden_size=16, num_layers=2, max_length=10)

    def build(draft) -> None:
        torch.manual_seed(0)
        drawn = Student(section, NUM_ITEMS, None)
        with torch.no_grad():
            for parameter in drawn.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        save_student(drawn, draft)

    recipe = {"student": section.model_dump(mode="json")}
    return make(tmp_path_factory.mktemp("student") / "s", "student", recipe=recipe, inputs={}, build=build)


def test_a_rival_does_not_hold_our_graph(student: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its peak memory is its own."""
    monkeypatch.setattr("benchmark.baselines.eager.ServingGraph", lambda *_, **__: pytest.fail("ours was built"))
    open_variant(student, 1, "plain-pytorch", K)


def test_a_tool_that_ends_without_a_word_lacked_memory() -> None:
    with pytest.raises(MemoryError, match="ended without a word"):
        apart(os.abort)


SERVE_PARTS = """
import sys
from pathlib import Path
from benchmark.variants import open_variant
from foundation.artifact import load
if __name__ == "__main__":
    open_variant(load(Path(sys.argv[1])), 1, "parts", 20)
    sys.exit("the exporter was loaded" if "torch" in sys.modules else 0)
"""


def test_what_made_a_rival_is_no_memory_of_its_serving(student: Artifact, tmp_path: Path) -> None:
    (tmp_path / "serve.py").write_text(SERVE_PARTS)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, tmp_path / "serve.py", student.path]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-500:]


def histories() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    padded = np.concatenate([np.zeros((4, 5), int), rng.integers(1, NUM_ITEMS, (4, 8))], axis=1)
    return [rng.integers(1, NUM_ITEMS, (3, 7)), rng.integers(1, NUM_ITEMS, (1, 25)), padded]


def test_a_student_is_served_as_the_recipe_exports_it(student: Artifact) -> None:
    """In two stages as well, the first layer looked up."""
    options = ExportSection(k=K, first_stage_dims=12, first_stage_items=100, first_layer_table=True).graph_options
    served = open_variant(student, 1, "pytorch", K, options).recommender
    assert isinstance(served, TorchRecommender) and isinstance(served.graph, ServingGraph)
    assert served.graph.two_stages and served.graph.layer_I3 is not None
    reference = StudentRecommender(load_student(student))
    for history_BL in histories():
        expected, found = reference.recommend(history_BL, K)[0], served.recommend(history_BL, K)[0]
        assert np.mean([len(set(a) & set(b)) / K for a, b in zip(expected, found, strict=True)]) > 0.9


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("pytorch-compiled", "aotinductor")])
def test_rivals_answer_as_the_student_does(student: Artifact, method: str) -> None:
    """Those that compile are measured by `tools/export_figures.py`, and AOTInductor has tests of its own."""
    rival, reference = open_variant(student, 1, method).recommender, StudentRecommender(load_student(student))
    for history_BL in histories():
        expected, found = reference.recommend(history_BL, K), rival.recommend(history_BL, K)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_allclose(found[1], expected[1], atol=1e-5)


def test_the_plain_graph_answers_as_the_student_does(student: Artifact, tmp_path: Path) -> None:
    opened = load_student(student)
    onnx.save(to_plain_onnx(PlainGraph(opened, K), opened, ("item_index", "score")), tmp_path / GRAPH)
    (tmp_path / "item_ids.json").write_text(json.dumps([str(number) for number in range(NUM_ITEMS)]))
    plain, reference = OnnxRecommender(tmp_path / GRAPH, 1), StudentRecommender(opened)
    for history_BL in histories():
        np.testing.assert_array_equal(plain.recommend(history_BL, K)[0], reference.recommend(history_BL, K)[0])
