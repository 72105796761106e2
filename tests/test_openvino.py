"""The ONNX graph as OpenVINO's own files: written, checked, run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmark.variants import open_variant
from distill.device import fast_bf16
from export.config import ExportSection
from export.onnx_graph import build_onnx
from export.parity import ParityError
from foundation import artifact
from foundation.artifact import Artifact, ArtifactError, load, make
from recommender.beyond import overlap
from recommender.config import StudentSection
from recommender.runtimes.base import GRAPH
from recommender.runtimes.onnxruntime import OnnxRecommender
from recommender.split import Sequences
from recommender.student import Student
from tests.faults import forge

pytest.importorskip("openvino")
from export.openvino_ir import build_ir
from recommender.runtimes.openvino import IR, OpenVinoFloatRecommender

SECTION = ExportSection(k=10, parity_histories=60, inputs=["exclude"])


@pytest.fixture(scope="module")
def graph(sequences: Sequences, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    import torch

    torch.manual_seed(0)
    student = Student(StudentSection(hidden_size=16, num_layers=1, max_length=10), sequences.num_items, None).eval()
    build = lambda draft: build_onnx(student, sequences, SECTION, "", draft)  # noqa: E731
    return make(tmp_path_factory.mktemp("onnx") / "g", "onnx", recipe={}, inputs={}, build=build)


def convert(graph: Artifact, sequences: Sequences, out: Path) -> Artifact:
    build = lambda draft: build_ir(graph, sequences, SECTION, draft)  # noqa: E731
    return make(out, "openvino", recipe={}, inputs={"onnx": graph}, build=build)


def test_the_converted_graph_answers_as_the_graph_does(graph: Artifact, sequences: Sequences, tmp_path: Path) -> None:
    made = convert(graph, sequences, tmp_path / "ir")
    made.verify()
    assert set(made.manifest["files"]) == {"model.xml", "model.bin", "item_ids.json"}
    assert made.metrics["parity"]["overlap"] == 1.0
    text = made.file("model.xml").read_text()
    assert str(tmp_path) not in text and str(graph.path.parent) not in text
    history_BL, exclude_BE = np.array([[0, 3, 5], [1, 2, 4]]), np.array([[7, 8], [9, 0]])
    expected = OnnxRecommender(graph.file(GRAPH)).recommend(history_BL, 10, exclude=exclude_BE)
    found = OpenVinoFloatRecommender(made.file(IR), 1).recommend(history_BL, 10, exclude=exclude_BE)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
    served = open_variant(made, 1).recommender.recommend(history_BL, 10, exclude=exclude_BE)  # in bf16 where there is that
    np.testing.assert_allclose(served[1], expected[1], atol=0.02 * np.abs(expected[1]).max() if fast_bf16() else 1e-5)
    assert overlap(served[0], expected[0]).min() >= (0.8 if fast_bf16() else 1.0)


def test_a_graph_that_answers_differently_is_not_kept(
    graph: Artifact, sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = OnnxRecommender.run
    monkeypatch.setattr(OnnxRecommender, "run", lambda self, feeds: (whole(self, feeds)[0][:, ::-1] % 7, whole(self, feeds)[1]))
    with pytest.raises(ParityError, match="the converted graph"):
        convert(graph, sequences, tmp_path / "ir")
    assert not (tmp_path / "ir").exists()


def test_damaged_weights_are_refused(graph: Artifact, sequences: Sequences, tmp_path: Path) -> None:
    made = convert(graph, sequences, tmp_path / "ir")
    weights = made.path / "model.bin"
    weights.write_bytes(weights.read_bytes()[:-64])
    with pytest.raises(ArtifactError, match=r"model\.bin"):
        open_variant(load(made.path), 1)
    forge(made.path)
    artifact._verified.clear()  # as a new process would find it
    with pytest.raises(ArtifactError, match=r"outside of model\.bin"):
        open_variant(load(made.path), 1)
