"""The exported graph, its quantized variants, and TensorRT engines."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import quantize.dynamic_int8
import quantize.weight_only_int4
from export.config import ExportSection
from export.onnx_graph import ITEM_IDS, build_onnx
from export.parity import ParityError, compare, parity_histories
from export.tensorrt_engine import EngineError, build_engine, build_engines
from foundation.artifact import Artifact, make
from quantize.config import QuantizeSection
from quantize.graph import build_quantized_graph
from quantize.methods import GRAPH_METHODS
from recommender.beyond import overlap
from recommender.config import StudentSection
from recommender.ranking import pad_left
from recommender.runtimes import GRAPH, METHODS
from recommender.runtimes.onnxruntime import OnnxRecommender
from recommender.runtimes.tensorrt import TensorRTUnavailable, import_tensorrt
from recommender.split import Sequences
from recommender.student import Student, StudentRecommender
from tests.contracts import GraphQuantizerContract, RuntimeContract

NUM_ITEMS = 400
SECTION = ExportSection(k=20, parity_histories=60, trt_targets=["sm89"], trt_max_length=64)


@pytest.fixture(scope="session")
def catalogue() -> Sequences:
    """Random histories over a catalogue of NUM_ITEMS."""
    rng = np.random.default_rng(0)
    histories = [rng.choice(NUM_ITEMS, size=rng.integers(3, 40), replace=False) + 1 for _ in range(50)]
    offsets = np.cumsum([0, *map(len, histories)])
    return Sequences(
        [f"u{n:02d}" for n in range(50)],
        [f"i{n}" for n in range(NUM_ITEMS)],
        offsets,
        np.concatenate(histories).astype(np.int32),
    )


@pytest.fixture(scope="session")
def student() -> Student:
    torch.manual_seed(0)
    student = Student(
        StudentSection(hidden_size=64, num_layers=2, max_length=16), NUM_ITEMS, torch.randn(NUM_ITEMS + 1, 8)
    ).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return student


@pytest.fixture(scope="session")
def exported(student: Student, catalogue: Sequences, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("export") / "onnx"
    return make(out, "onnx", recipe={}, inputs={}, build=lambda draft: build_onnx(student, catalogue, SECTION, "0" * 64, draft))


@pytest.fixture(scope="session")
def exported_path(exported: Artifact) -> Path:
    return exported.file(GRAPH)


@pytest.fixture(scope="session")
def exported_graph(exported: Artifact) -> onnx.ModelProto:
    return onnx.load(exported.file(GRAPH))


def test_a_history_of_a_million_items(exported: Artifact, student: Student) -> None:
    """The graph reads the last positions, and masks every item seen."""
    rng = np.random.default_rng(0)
    long_L = rng.integers(1, NUM_ITEMS - 40, 1_000_000)
    histories = pad_left([long_L, np.array([3, 1])])
    index_BK, score_BK = OnnxRecommender(exported.file(GRAPH)).recommend(histories, 10)
    expected_BK, _ = StudentRecommender(student).recommend(histories, 10)
    assert index_BK.tolist() == expected_BK.tolist()
    assert np.isfinite(score_BK).all()
    assert not set(index_BK[0]) & set(long_L)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 300), (2, 7), (64, 16), (5, 17)])
def test_graph_equals_pytorch_at_any_shape(exported: Artifact, student: Student, batch: int, length: int) -> None:
    history_BL = np.random.default_rng(batch).integers(0, NUM_ITEMS + 1, (batch, length))
    index_BK, score_BK = OnnxRecommender(exported.file(GRAPH)).recommend(history_BL, 20)
    expected_BK, expected_score_BK = StudentRecommender(student).recommend(history_BL, 20)
    assert overlap(index_BK, expected_BK).mean() > 0.99
    assert np.allclose(score_BK, expected_score_BK, atol=1e-5)
    for seen, recommended in zip(history_BL, index_BK, strict=True):
        assert not set(seen) & set(recommended)


def test_graph_is_self_contained(exported: Artifact, exported_graph: onnx.ModelProto) -> None:
    onnx.checker.check_model(exported_graph, full_check=True)
    assert [opset.version for opset in exported_graph.opset_import if not opset.domain] == [SECTION.opset]
    assert {entry.key: entry.value for entry in exported_graph.metadata_props}["recdistill.student"] == "0" * 64
    assert not any(tensor.external_data for tensor in exported_graph.graph.initializer)
    assert b"/" + Path(torch.__file__).parts[1].encode() + b"/" not in exported_graph.SerializeToString()  # no one's paths
    assert set(exported.manifest["files"]) == {GRAPH, ITEM_IDS}
    assert exported.metrics["parity"]["overlap"] >= 0.99


def test_ties_go_to_the_lower_index(student: Student, catalogue: Sequences, tmp_path: Path) -> None:
    with torch.no_grad():
        flat = Student(student.section, NUM_ITEMS, None).eval()
        flat.items.id_ID[1:] = 1.0
    built = make(
        tmp_path / "f", "onnx", recipe={}, inputs={}, build=lambda draft: build_onnx(flat, catalogue, SECTION, "", draft)
    )
    index_BK, _ = OnnxRecommender(built.file(GRAPH)).recommend(np.array([[0, 2, 5]]), 20)
    assert index_BK[0].tolist() == [i for i in range(1, 23) if i not in (2, 5)]


def test_parity_failure_leaves_nothing(
    student: Student, catalogue: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reversed_recommend(self: StudentRecommender, history_BL: np.ndarray, k: int):
        index_BK, score_BK = original(self, history_BL, NUM_ITEMS - 20)
        return index_BK[:, -k:], score_BK[:, -k:]

    original = StudentRecommender.recommend
    monkeypatch.setattr(StudentRecommender, "recommend", reversed_recommend)
    with pytest.raises(ParityError, match="agree on only"):
        make(
            tmp_path / "x", "onnx", recipe={}, inputs={}, build=lambda draft: build_onnx(student, catalogue, SECTION, "", draft)
        )
    assert not (tmp_path / "x").exists()


def test_parity_measures(catalogue: Sequences, student: Student) -> None:
    same = compare(StudentRecommender(student), StudentRecommender(student), parity_histories(catalogue, SECTION), 20)
    assert (same.overlap, same.same_order, same.max_score_difference, same.histories) == (1, 1, 0, 60)


def test_k_is_bounded(exported: Artifact, student: Student, catalogue: Sequences, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="20 items, 21 were asked for"):
        OnnxRecommender(exported.file(GRAPH)).recommend(np.array([[1]]), 21)
    with pytest.raises(ValueError, match=r"export\.k = 3000 needs a catalogue of more items"):
        make(
            tmp_path / "x",
            "onnx",
            recipe={},
            inputs={},
            build=lambda draft: build_onnx(student, catalogue, SECTION.model_copy(update={"k": 3000}), "", draft),
        )


class TestDynamicInt8(GraphQuantizerContract):
    method, min_overlap, max_bytes_ratio = quantize.dynamic_int8, 0.95, 0.6


class TestWeightOnlyInt4(GraphQuantizerContract):
    method, min_overlap, max_bytes_ratio = quantize.weight_only_int4, 0.6, 0.5


def test_every_graph_quantizer_has_a_contract_test() -> None:
    assert {contract.method.__name__ for contract in GraphQuantizerContract.__subclasses__()} == set(GRAPH_METHODS.values())


def test_error_falls_with_bits(exported: Artifact, student: Student, tmp_path: Path) -> None:
    history_BL = np.random.default_rng(0).integers(1, NUM_ITEMS, (50, 12))
    exact = [dict(zip(*row, strict=True)) for row in zip(*StudentRecommender(student).recommend(history_BL, 300), strict=True)]
    errors = []
    for method in (quantize.dynamic_int8, quantize.weight_only_int4):
        onnx.save(method.quantize(onnx.load(exported.file(GRAPH)), QuantizeSection()), tmp_path / "q.onnx")
        index_BK, score_BK = OnnxRecommender(tmp_path / "q.onnx").recommend(history_BL, 20)
        rows = zip(exact, index_BK, score_BK, strict=True)
        errors.append(np.mean([abs(scores[i] - s) for scores, *row in rows for i, s in zip(*row, strict=True)]))
    assert 0 < 2 * errors[0] < errors[1]


def test_int8_weights_cannot_saturate(exported_graph: onnx.ModelProto) -> None:
    """Two products of 7-bit weights and 8-bit activations fit 16 bits, which is all that AVX2 without VNNI has."""
    quantized = quantize.dynamic_int8.quantize(exported_graph, QuantizeSection())
    weights = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in quantized.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8
    ]
    largest = max(int(np.abs(weight.astype(int)).max()) for weight in weights if weight.ndim == 2)
    assert largest > 32 and 2 * largest * 255 < 2**15


@pytest.mark.parametrize("method", GRAPH_METHODS)
def test_quantized_artefact_is_judged_against_float(
    exported: Artifact, catalogue: Sequences, tmp_path: Path, method: str
) -> None:
    built = make(
        tmp_path / "q",
        f"onnx-{method}",
        recipe={},
        inputs={"onnx": exported},
        build=lambda draft: build_quantized_graph(method, exported, catalogue, QuantizeSection(), draft),
    )
    assert built.metrics["graph_bytes"] < built.metrics["float_graph_bytes"]
    assert 0 <= built.metrics["test"]["ndcg_at_10"] <= 1
    assert built.file(ITEM_IDS).read_bytes() == exported.file(ITEM_IDS).read_bytes()


def test_tensorrt_engine_is_built_and_its_state_is_told(exported: Artifact, catalogue: Sequences, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is published for Linux on x86-64 only")
    built = make(
        tmp_path / "e", "tensorrt", recipe={}, inputs={}, build=lambda draft: build_engines(exported, catalogue, SECTION, draft)
    )
    if not torch.cuda.is_available():
        assert built.metrics["status"] == "built, not run"
        assert "ran" not in built.metrics
        engine = built.metrics["engines"][0]
        assert engine["target"] == "sm89"
        assert built.file(engine["file"]).stat().st_size == engine["bytes"] > 0


def test_tensorrt_unknown_target_names_the_known(exported: Artifact) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is published for Linux on x86-64 only")
    trt, flavour = import_tensorrt()
    if flavour == "tensorrt_rtx":
        with pytest.raises(EngineError, match=r"sm90.*sm120.*Hopper"):
            build_engine(trt, exported.file(GRAPH), SECTION, "sm90")


LOW_ON_MEMORY = """
import resource, sys
from pathlib import Path
from export.config import ExportSection
from export.tensorrt_engine import build_engine
from foundation.failure import lacks_memory
from recommender.runtimes.tensorrt import import_tensorrt
trt, _ = import_tensorrt()
build_engine(trt, Path(sys.argv[1]), ExportSection(), "sm89")
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (32 << 20), resource.RLIM_INFINITY))
try:
    build_engine(trt, Path(sys.argv[1]), ExportSection(), "sm89")
except Exception as error:
    sys.exit(0 if lacks_memory(error) else str(error))
"""


def test_tensorrt_says_that_memory_is_lacking(exported: Artifact) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is published for Linux on x86-64 only")
    done = subprocess.run(
        [sys.executable, "-c", LOW_ON_MEMORY, exported.file(GRAPH)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_tensorrt_does_not_run_without_a_gpu(tmp_path: Path) -> None:
    from recommender.runtimes.tensorrt import TensorRTRecommender

    with pytest.raises(TensorRTUnavailable, match="built, not run"):
        TensorRTRecommender(tmp_path / "none.engine")


@pytest.mark.gpu
def test_tensorrt_engine_runs_and_agrees(exported: Artifact, catalogue: Sequences, tmp_path: Path) -> None:
    built = make(
        tmp_path / "e", "tensorrt", recipe={}, inputs={}, build=lambda draft: build_engines(exported, catalogue, SECTION, draft)
    )
    assert built.metrics["status"].startswith("ran on")
    assert built.metrics["parity"]["overlap"] >= 0.99


def test_hard_histories_are_part_of_parity(catalogue: Sequences) -> None:
    histories = parity_histories(catalogue, SECTION)
    lengths = [len(h) for h in histories[:4]]
    assert lengths[0] == 0
    assert lengths[1] == 1
    assert len(set(histories[2])) == 1
    assert pad_left(histories).shape[0] == 60


class TestOnnxRuntime(RuntimeContract):
    runtime = "onnxruntime"


@pytest.mark.skipif(find_spec("openvino") is None, reason="the extra openvino is not installed")
class TestOpenVino(RuntimeContract):
    runtime = "openvino"
    min_overlap, max_score_difference = 0.95, 0.1  # bfloat16 where the CPU has it


def test_every_runtime_has_its_contract() -> None:
    assert {contract.runtime for contract in RuntimeContract.__subclasses__()} == set(METHODS)
