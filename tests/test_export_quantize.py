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

import quantize.block_int4
import quantize.dynamic_int8
import quantize.static_fp8
import quantize.static_int8
import quantize.weight_only_int4
from export.config import ExportSection, TensorRTSection
from export.describe import describe, to_text
from export.graph import ServingGraph
from export.onnx_graph import build_onnx, write_graph
from export.parity import Lists, ParityError, Requests, answers, compare, parity_requests
from export.tensorrt_engine import EngineError, build_engine, build_engines
from export.verify import require, table, verify_graph
from foundation.artifact import Artifact, ArtifactError, Draft, make
from quantize.config import QuantizeSection
from quantize.graph import build_quantized_graph
from quantize.methods import ENGINE_METHODS, GRAPH_METHODS
from recommender.beyond import overlap
from recommender.config import StudentSection
from recommender.ranking import pad_left
from recommender.runtimes import open_graph
from recommender.runtimes.base import GRAPH, ITEM_IDS
from recommender.runtimes.onnxruntime import OnnxRecommender
from recommender.runtimes.tensorrt import TensorRTUnavailable, import_tensorrt
from recommender.split import Sequences
from recommender.student import Student, StudentRecommender
from tests.contracts import GraphQuantizerContract

NUM_ITEMS = 400
ENGINES = TensorRTSection(precisions=["fp32"], targets=["sm89"], profiles=[[1, 64]], max_length=64, max_listed=32)
SECTION = ExportSection(k=20, parity_histories=60, tensorrt=ENGINES)


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
    def wrong_recommend(self: StudentRecommender, history_BL: np.ndarray, k: int):
        index_BK, score_BK = original(self, history_BL, k)
        return index_BK % NUM_ITEMS + 1, score_BK

    original = StudentRecommender.recommend
    monkeypatch.setattr(StudentRecommender, "recommend", wrong_recommend)
    with pytest.raises(ParityError, match="agree on only"):
        make(
            tmp_path / "x", "onnx", recipe={}, inputs={}, build=lambda draft: build_onnx(student, catalogue, SECTION, "", draft)
        )
    assert not (tmp_path / "x").exists()


def test_parity_measures(catalogue: Sequences, student: Student) -> None:
    requests = parity_requests(catalogue, 60, 20)
    lists = answers(StudentRecommender(student), requests, 20)
    same = compare(lists, lists, requests)
    assert (same.overlap, same.same_order, same.max_score_difference, same.histories) == (1, 1, 0, 60)
    moved = Lists(np.roll(lists.index_NK, 1, axis=1), lists.score_NK - 0.5)
    other = compare(lists, moved, requests)
    assert (other.overlap, other.same_order) == (1, 0)
    assert other.max_score_difference == pytest.approx(0.5)


def test_parity_sees_what_the_next_item_loses() -> None:
    """Twenty users, of whom half had their item first and now have it second."""
    requests = Requests([np.array([1])] * 20, np.full(20, 7))
    before = Lists(np.tile([7, 8], (20, 1)), np.ones((20, 2), np.float32))
    after = Lists(np.where(np.arange(20)[:, None] < 10, [8, 7], [7, 8]), np.ones((20, 2), np.float32))
    found = compare(before, after, requests).ndcg_at_10
    assert found is not None and found["relative"] == pytest.approx((1 / np.log2(3) - 1) / 2)
    assert found["ci95"][0] < found["relative"] < found["ci95"][1]


def test_parity_fails_where_one_has_no_item() -> None:
    requests = Requests([np.array([1])], np.array([7]))
    lists = Lists(np.array([[7, 8]]), np.zeros((1, 2), np.float32))
    for score in (np.nan, -np.inf):
        with pytest.raises(ParityError, match="no number, or no item"):
            compare(lists, Lists(lists.index_NK, np.array([[0, score]], np.float32)), requests)


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


class TestStaticInt8(GraphQuantizerContract):
    method, min_overlap, max_bytes_ratio = quantize.static_int8, 0.85, 0.6

    def test_scores_are_not_rounded(self, quantized: onnx.ModelProto, tmp_path: Path) -> None:
        onnx.save(quantized, tmp_path / "q.onnx")
        history_BL = np.random.default_rng(0).integers(1, 200, (100, 12))
        score_BK = OnnxRecommender(tmp_path / "q.onnx").recommend(history_BL, 20)[1]
        assert len(np.unique(score_BK)) > 1500, "8 bits have 256 values"


class TestBlockInt4(GraphQuantizerContract):
    method, min_overlap, max_bytes_ratio, float_table = quantize.block_int4, 0.6, 0.8, True


class TestStaticFp8(GraphQuantizerContract):
    method, min_overlap, max_bytes_ratio, float_table = quantize.static_fp8, 0.6, 0.8, True
    runtime = "onnxruntime-plain"


def test_every_graph_quantizer_has_a_contract_test() -> None:
    assert {contract.method.__name__ for contract in GraphQuantizerContract.__subclasses__()} == set(GRAPH_METHODS.values())


def test_error_falls_with_bits(exported: Artifact, student: Student, tmp_path: Path) -> None:
    history_BL = np.random.default_rng(0).integers(1, NUM_ITEMS, (50, 12))
    exact = [dict(zip(*row, strict=True)) for row in zip(*StudentRecommender(student).recommend(history_BL, 300), strict=True)]
    errors = []
    for method in (quantize.dynamic_int8, quantize.weight_only_int4):
        onnx.save(method.quantize(onnx.load(exported.file(GRAPH)), QuantizeSection(), []), tmp_path / "q.onnx")
        index_BK, score_BK = OnnxRecommender(tmp_path / "q.onnx").recommend(history_BL, 20)
        rows = zip(exact, index_BK, score_BK, strict=True)
        errors.append(np.mean([abs(scores[i] - s) for scores, *row in rows for i, s in zip(*row, strict=True)]))
    assert 0 < 2 * errors[0] < errors[1]


def test_int8_weights_cannot_saturate(exported_graph: onnx.ModelProto) -> None:
    """Two products of 7-bit weights and 8-bit activations fit 16 bits, which is all that AVX2 without VNNI has."""
    quantized = quantize.dynamic_int8.quantize(exported_graph, QuantizeSection(), [])
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


@pytest.fixture(scope="session")
def graphs(
    exported: Artifact, student: Student, catalogue: Sequences, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Artifact]:
    """A graph of every precision TensorRT has."""
    folder, found = tmp_path_factory.mktemp("graphs"), {"fp32": exported}
    for precision in ("fp16", "bf16"):
        if precision == "bf16" and find_spec("openvino") is None:
            continue

        def build(draft: Draft, precision: str = precision) -> None:
            build_onnx(student, catalogue, SECTION, "0" * 64, draft, precision)

        found[precision] = make(folder / precision, f"onnx-{precision}", recipe={}, inputs={}, build=build)
    for precision, method in ENGINE_METHODS.items():

        def build_quantized(draft: Draft, method: str = method) -> None:
            build_quantized_graph(method, exported, catalogue, QuantizeSection(calibration_length=12), draft)

        found[precision] = make(folder / method, f"onnx-{method}", recipe={}, inputs={}, build=build_quantized)
    return found


def test_an_engine_of_every_precision_is_built(
    graphs: dict[str, Artifact], student: Student, catalogue: Sequences, tmp_path: Path
) -> None:
    """For all targets at once, three ranges of batches each; fp8 is left out where the hardware has none, and that is said."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is published for Linux on x86-64 only")
    engines = TensorRTSection(precisions=list(graphs), max_length=64)
    section = SECTION.model_copy(update={"tensorrt": engines})
    built = make(
        tmp_path / "e",
        "tensorrt",
        recipe={},
        inputs={},
        build=lambda draft: build_engines(graphs, StudentRecommender(student), 0, catalogue, section, draft),
    )
    found = {engine["precision"]: engine for engine in built.metrics["engines"]}
    assert set(found) == set(graphs)
    for precision, engine in found.items():
        assert built.file(engine["file"]).stat().st_size == engine["bytes"] > 0
        tensors = engine["network"]["tensors"]
        assert {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "INT8", "int4": "INT4", "fp8": "FP8"}[
            precision
        ] in tensors
    if built.metrics["flavour"] == "tensorrt_rtx":
        assert found["fp32"]["targets"] == ["sm80", "sm89", "sm120"]
        assert found["fp8"]["targets"] == ["sm89", "sm120"]
        assert built.metrics["left_out"] == [{"precision": "fp8", "target": "sm80", "why": "fp8 needs sm89 or later"}]
    if not torch.cuda.is_available():
        assert built.metrics["status"] == "built, not run"
        assert "ran" not in built.metrics


def test_tensorrt_unknown_target_names_the_known(exported: Artifact) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is published for Linux on x86-64 only")
    trt, flavour = import_tensorrt()
    if flavour == "tensorrt_rtx":
        with pytest.raises(EngineError, match=r"sm90.*sm120.*Hopper"):
            build_engine(trt, exported.file(GRAPH), ENGINES, ["sm80", "sm90"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"profiles": [[1, 4], [6, 64]]}, "must be ranges that follow one another"),
        ({"profiles": [[2, 64]]}, "must be ranges that follow one another"),
        ({"profiles": [[1, 32]]}, "ends below 64"),
        ({"precisions": ["fp8"], "targets": ["sm80"]}, "needs sm89 or later"),
        ({"targets": ["sm80", "sm80"]}, "names one twice"),
    ],
)
def test_engines_that_cannot_be_are_refused_with_the_recipe(changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TensorRTSection(**changes)


LOW_ON_MEMORY = """
import resource, sys
from pathlib import Path
from export.config import TensorRTSection
from export.tensorrt_engine import build_engine
from foundation.failure import lacks_memory
from recommender.runtimes.tensorrt import import_tensorrt
trt, _ = import_tensorrt()
build_engine(trt, Path(sys.argv[1]), TensorRTSection(), ["sm89"])
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (32 << 20), resource.RLIM_INFINITY))
try:
    build_engine(trt, Path(sys.argv[1]), TensorRTSection(), ["sm89"])
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
def test_tensorrt_engine_runs_and_agrees(
    graphs: dict[str, Artifact], student: Student, catalogue: Sequences, tmp_path: Path
) -> None:
    built = make(
        tmp_path / "e",
        "tensorrt",
        recipe={},
        inputs={},
        build=lambda draft: build_engines(graphs, StudentRecommender(student), 0, catalogue, SECTION, draft),
    )
    assert built.metrics["status"].startswith("ran on")
    for engine in built.metrics["engines"]:
        assert engine["parity"]["overlap"] >= (0.99 if engine["precision"] in ("fp32", "fp16") else 0.5)


def test_hard_histories_are_part_of_parity(catalogue: Sequences) -> None:
    requests = parity_requests(catalogue, 60, 20)
    histories = requests.histories
    assert [len(history) for history in histories[:2]] == [0, 1]
    assert len(set(histories[2])) == 1
    assert {NUM_ITEMS + 1, -1} < set(histories[3])
    assert len(histories[4]) == NUM_ITEMS - 20
    assert (pad_left(histories).shape[0], len(requests.target_N)) == (60, 60)
    assert (requests.target_N[:5] == 0).all() and (requests.target_N[5:] > 0).all()


def slow_answer(student: Student, history: list[int], exclude: list[int], candidates: list[int], query: np.ndarray) -> dict:
    """item_index -> score of everything that may be returned, position by position, as the docstring of the graph says."""
    table_ID, known = student.items().detach(), [i if 0 < i <= NUM_ITEMS else 0 for i in history]
    places, own_ID = list(known), table_ID
    if query.any():
        places.append(len(table_ID))
        own_ID = torch.cat([table_ID, student.items.of_text(torch.tensor(query[None], dtype=torch.float32)).detach()])
    with torch.no_grad():
        score_I = (student.last_hidden(torch.tensor([places or [0]]), own_ID) @ table_ID.T)[0]
    allowed = set(candidates or range(1, NUM_ITEMS + 1)) - set(known) - set(exclude)
    return {i: float(score_I[i]) for i in sorted(allowed) if 0 < i <= NUM_ITEMS}


REQUESTS = [  # history, exclude, candidates, whether something is asked for
    ([3, 9, 27], [], [], False),
    ([3, 9, 27], [1, 2, 3, 4], [], True),
    ([], [], [], True),
    ([], [], [], False),
    ([0, 5, 5], [7], [5, 7, 9, 9, 2, 400, 401, -3], False),
    (list(range(1, 40)), [60, 50], [41, 50, 60, 70, 80], True),
    ([2], [], [2], False),
    ([NUM_ITEMS + 5, 4, -1, 6], [NUM_ITEMS + 5, -2], [], False),
]


@pytest.fixture(
    scope="session", params=[["exclude", "query"], ["exclude", "candidates", "query"]], ids=["computed", "looked-up"]
)
def asked_graph(request: pytest.FixtureRequest, student: Student, exported: Artifact, tmp_path_factory) -> tuple[list, Path]:
    """(its optional inputs, a graph that has them), the ids beside it; one of them looks its first layer up."""
    path = tmp_path_factory.mktemp("asked") / GRAPH
    first_layer = "candidates" in request.param
    write_graph(ServingGraph(student, 20, first_layer=first_layer), request.param, 21, "", path)
    path.with_name(ITEM_IDS).write_bytes(exported.file(ITEM_IDS).read_bytes())
    return request.param, path


@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime-plain", "openvino-fp32"])
def test_optional_inputs(student: Student, asked_graph: tuple[list, Path], runtime: str) -> None:
    """Each request alone and all of them in one batch, against a slow answer item by item."""
    if runtime.startswith("openvino"):
        pytest.importorskip("openvino")
    inputs, path = asked_graph
    graph = open_graph(runtime, path)
    assert set(graph.inputs) == set(inputs)
    requests = [request for request in REQUESTS if "candidates" in inputs or not request[2]]
    query_NZ = np.random.default_rng(0).normal(size=(len(requests), 8)) * np.array([[asked] for *_, asked in requests])
    everything = list(range(1, NUM_ITEMS + 1))

    def ask(rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
        asked = {"exclude": pad_left([np.array(requests[r][1], int) for r in rows]), "query": query_NZ[rows]}
        if "candidates" in inputs:
            asked["candidates"] = pad_left([np.array(requests[r][2] or everything, int) for r in rows])
        return graph.recommend(pad_left([np.array(requests[r][0], int) for r in rows]), 20, **asked)

    alone = [ask([row]) for row in range(len(requests))]
    together = ask(list(range(len(requests))))
    for row, (history, exclude, candidates, _) in enumerate(requests):
        expected = slow_answer(student, history, exclude, candidates, query_NZ[row])
        for index_K, score_K in ((alone[row][0][0], alone[row][1][0]), (together[0][row], together[1][row])):
            num_left = min(len(expected), 20)
            assert (index_K[num_left:] == 0).all() and (score_K[num_left:] == -np.inf).all()
            assert len(set(index_K[:num_left])) == num_left
            assert np.allclose([expected[i] for i in index_K[:num_left]], score_K[:num_left], atol=1e-4)
            best = sorted(expected.values(), reverse=True)[:num_left]
            assert np.allclose(score_K[:num_left], best, atol=1e-4)


def test_inputs_left_out_change_nothing(asked_graph: tuple[list, Path], exported: Artifact) -> None:
    history_BL = np.random.default_rng(0).integers(1, NUM_ITEMS, (5, 30))
    whole, plain = (OnnxRecommender(path).recommend(history_BL, 20) for path in (asked_graph[1], exported.file(GRAPH)))
    assert whole[0].tolist() == plain[0].tolist()
    assert np.allclose(whole[1], plain[1], atol=1e-5)


def test_inputs_that_are_not_there_are_refused(exported: Artifact, catalogue: Sequences, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no input 'query'.*export\.inputs = \['query'\]"):
        OnnxRecommender(exported.file(GRAPH)).recommend(np.array([[1]]), 5, query=np.ones((1, 8)))
    blind = Student(StudentSection(hidden_size=64, num_layers=2, max_length=16), NUM_ITEMS, None)
    with pytest.raises(ValueError, match="has no item text"):
        write_graph(ServingGraph(blind, 20), ["query"], 21, "", tmp_path / GRAPH)


def test_half_precision_ranks_alike(graphs: dict[str, Artifact]) -> None:
    sizes = {name: graphs[name].file(GRAPH).stat().st_size for name in ("fp32", "fp16")}
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    assert graphs["fp16"].metrics["parity"]["overlap"] >= 0.99
    assert any("onnxruntime-plain" in way for way in graphs["fp16"].metrics["verified_in"])


def test_a_graph_is_described(exported: Artifact, graphs: dict[str, Artifact]) -> None:
    found = describe(exported)
    assert found["inputs"] == {"history": "int64[batch, length]"}
    assert found["outputs"] == {"item_index": "int64[batch, 20]", "score": "float[batch, 20]"}
    assert found["bytes_by_part"]["item table"] == 4 * 64 * (NUM_ITEMS + 1)
    assert sum(found["bytes_by_part"].values()) == pytest.approx(exported.file(GRAPH).stat().st_size)
    assert exported.manifest["files"][GRAPH]["sha256"] in to_text(found)
    half, quantized = describe(graphs["fp16"]), describe(graphs["int8"])
    assert half["bytes_by_part"]["item table"] == 2 * 64 * (NUM_ITEMS + 1)
    assert quantized["bytes_by_type"]["int8"] > quantized["bytes_by_type"]["float"]


def test_what_is_no_export_is_not_described(tmp_path: Path) -> None:
    other = make(tmp_path / "x", "popularity", recipe={}, inputs={}, build=lambda draft: None)
    with pytest.raises(ArtifactError, match="no exported one"):
        describe(other)


def test_verification_says_which_way_ranks_otherwise(exported: Artifact, student: Student, catalogue: Sequences) -> None:
    requests = parity_requests(catalogue, 60, 20)
    right = answers(StudentRecommender(student), requests, 20)
    rows = list(verify_graph("it", exported.file(GRAPH), "fp32", right, requests, SECTION))
    assert {row.runtime for row in rows} >= {"onnxruntime", "onnxruntime-plain"}
    assert all(row.status == "ok" and row.parity is not None and row.parity.overlap >= 0.99 for row in rows)
    assert require(rows) == rows and "onnxruntime-plain" in table(rows)
    wrong = Lists(right.index_NK % NUM_ITEMS + 1, right.score_NK)
    rows = list(verify_graph("it", exported.file(GRAPH), "fp32", wrong, requests, SECTION))
    assert "below export.min_overlap = 0.99" in table(rows)
    with pytest.raises(ParityError, match=r"it in onnxruntime and PyTorch agree on only 0\.\d+.*min_overlap = 0.99"):
        require(rows)
    assert not any(row.failed for row in verify_graph("it", exported.file(GRAPH), "int4", wrong, requests, SECTION))
