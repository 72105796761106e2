"""The exported graph where there is no Python: in onnxruntime-web, which runs in browsers (WebAssembly)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from export.graph import ServingGraph
from export.onnx_graph import write_graph
from recommender.config import StudentSection
from recommender.runtimes.onnxruntime import OnnxRecommender
from recommender.student import Student

RUNNER = Path(__file__).parent / "web_runner.mjs"


@pytest.mark.network
@pytest.mark.parametrize("opset", [18, 21])
def test_the_graph_answers_in_webassembly_as_it_does_here(opset: int, tmp_path: Path) -> None:
    if not shutil.which("npm"):
        pytest.skip("no npm")
    import torch

    torch.manual_seed(0)
    student = Student(StudentSection(hidden_size=32, num_layers=2, max_length=20), 500, None).eval()
    write_graph(ServingGraph(student, 10), [], opset, "", tmp_path / "model.onnx")
    subprocess.run(["npm", "install", "--silent", "onnxruntime-web@1.30.0"], cwd=tmp_path, check=True, timeout=300)
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 501, shape) for shape in ((1, 1), (1, 50), (4, 7), (2, 20))]
    asked = [{"dims": list(history.shape), "data": history.ravel().tolist()} for history in histories]
    (tmp_path / "requests.json").write_text(json.dumps(asked))
    command = ["node", str(RUNNER), str(tmp_path), str(tmp_path / "model.onnx"), str(tmp_path / "requests.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    here = OnnxRecommender(tmp_path / "model.onnx", 1)
    for history_BL, answer in zip(histories, json.loads(done.stdout.splitlines()[-1]), strict=True):
        index_BK, score_BK = here.recommend(history_BL, 10)
        np.testing.assert_array_equal(np.reshape(answer["item_index"], index_BK.shape), index_BK)
        np.testing.assert_allclose(np.reshape(answer["score"], score_BK.shape), score_BK, atol=1e-4)
