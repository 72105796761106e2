"""Every way to run the exported graph, in this process or behind a server, keeps one contract."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmark.baselines.eager import TorchRecommender
from export.aotinductor import compile_graph, lacks_compiler
from export.config import TensorRTSection, TritonSection
from export.graph import ServingGraph
from export.onnx_graph import write_graph
from foundation.artifact import Artifact, make, sha256_file
from recommender.config import StudentSection
from recommender.ranking import Recommender
from recommender.runtimes import METHODS, open_graph
from recommender.runtimes.aotinductor import PACKAGE, AotInductorRecommender
from recommender.runtimes.base import GRAPH, ITEM_IDS, GraphRecommender
from recommender.runtimes.onnxruntime import OnnxRecommender, PlainOnnxRecommender
from recommender.runtimes.open_inference import OpenInferenceRecommender
from recommender.runtimes.openvino import OpenVinoFloatRecommender, OpenVinoRecommender
from recommender.runtimes.remote import RemoteRecommender
from recommender.runtimes.tensorrt import TensorRTRecommender, import_tensorrt
from recommender.runtimes.triton import TritonRecommender
from recommender.student import Student
from tests.contracts import RecommenderContract, RuntimeContract
from tests.open_inference_server import Server as HttpServer

NUM_ITEMS, K = 400, 20


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    drawn = Student(StudentSection(hidden_size=32, num_layers=2, max_length=16), NUM_ITEMS, torch.randn(NUM_ITEMS + 1, 8))
    with torch.no_grad():
        for parameter in drawn.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return drawn.eval()


@pytest.fixture(scope="module")
def exported(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    def build(draft) -> None:
        write_graph(ServingGraph(student, K), [], 21, "", draft.path / GRAPH)
        write_ids(draft.path)
        draft.metrics["num_parameters"] = student.num_parameters

    return make(tmp_path_factory.mktemp("onnx") / "g", "onnx", recipe={}, inputs={}, build=build)


def write_ids(folder: Path) -> None:
    (folder / ITEM_IDS).write_text(json.dumps([f"sku-{number}" for number in range(1, NUM_ITEMS + 1)]))


class OfTheFile(RuntimeContract):
    """Runtimes that read the ONNX file; `runtime` is a name in METHODS."""

    runtime: str

    @pytest.fixture
    def opened(self, exported: Artifact) -> GraphRecommender:
        return open_graph(self.runtime, exported.file(GRAPH), num_threads=1)


class TestOnnxRuntime(OfTheFile):
    runtime, opens = "onnxruntime", OnnxRecommender


class TestPlainOnnxRuntime(OfTheFile):
    runtime, opens = "onnxruntime-plain", PlainOnnxRecommender


@pytest.mark.skipif(find_spec("openvino") is None, reason="the extra openvino is not installed")
class TestOpenVino(OfTheFile):
    runtime, opens = "openvino", OpenVinoRecommender
    min_overlap, max_score_difference = 0.95, 0.1  # bfloat16 where the CPU has it


@pytest.mark.skipif(find_spec("openvino") is None, reason="the extra openvino is not installed")
class TestOpenVinoFloat(OfTheFile):
    runtime, opens = "openvino-fp32", OpenVinoFloatRecommender


class TestPyTorch(RecommenderContract):
    @pytest.fixture
    def opened(self, student: Student) -> Recommender:
        return TorchRecommender(ServingGraph(student, K), 1)


@pytest.mark.skipif(bool(lacks_compiler()), reason="no C++ compiler")
class TestAotInductor(RuntimeContract):
    opens = AotInductorRecommender

    @pytest.fixture(scope="class")
    def opened(self, student: Student, tmp_path_factory: pytest.TempPathFactory) -> GraphRecommender:
        package = tmp_path_factory.mktemp("package") / PACKAGE
        compile_graph(ServingGraph(student, K), [], package)
        write_ids(package.parent)
        return AotInductorRecommender(package, sha256_file(package), 1)


@pytest.mark.gpu
class TestTensorRT(RuntimeContract):
    """The installed flavour."""

    opens = TensorRTRecommender
    min_overlap, max_score_difference = 0.95, 0.05  # ties in another order, and TF32

    @pytest.fixture(scope="class")
    def opened(self, exported: Artifact, tmp_path_factory: pytest.TempPathFactory) -> GraphRecommender:
        from export.tensorrt_engine import build_engine

        trt, flavour = import_tensorrt()
        section = TensorRTSection(precisions=["fp32"], profiles=[[1, 1], [2, 64]], max_length=512)
        major, minor = torch.cuda.get_device_capability()
        targets = [f"sm{major}{minor}"] if flavour == "tensorrt_rtx" else []
        engine = tmp_path_factory.mktemp("engine") / "fp32.engine"
        engine.write_bytes(build_engine(trt, exported.file(GRAPH), section, targets)[0])
        write_ids(engine.parent)
        return TensorRTRecommender(engine)


class TestOpenInference(RuntimeContract):
    """A server over HTTP that takes eight histories at once."""

    opens = OpenInferenceRecommender

    @pytest.fixture
    def opened(self, exported: Artifact) -> Iterator[GraphRecommender]:
        with HttpServer(exported.file(GRAPH), 8) as server:
            yield OpenInferenceRecommender(server.url, "shop", exported.path)


@pytest.mark.skipif(find_spec("tritonclient") is None, reason="the extra triton is not installed")
class TestTriton(RuntimeContract):
    """A server over Triton's gRPC that takes eight histories at once."""

    opens = TritonRecommender

    @pytest.fixture
    def opened(self, exported: Artifact, tmp_path: Path) -> Iterator[GraphRecommender]:
        from export.triton import build_repository
        from tests.triton_server import Server

        section = TritonSection(name="shop", max_batch_size=8)
        build = lambda draft: build_repository(exported, None, section, 10, draft)  # noqa: E731
        repository = make(tmp_path / "repository", "triton", recipe={}, inputs={"onnx": exported}, build=build)
        with Server(repository.path) as server:
            yield TritonRecommender(server.url, "shop", repository.path / "shop")


def test_every_runtime_keeps_the_contract() -> None:
    assert {contract.runtime for contract in OfTheFile.__subclasses__()} == set(METHODS)

    def concrete(base: type) -> set[type]:
        return {base}.union(*map(concrete, base.__subclasses__()))

    kept = {contract.opens for contract in concrete(RuntimeContract) if hasattr(contract, "opens")}
    ours = {runtime for runtime in concrete(GraphRecommender) if runtime.__module__.startswith("recommender.runtimes.")}
    assert kept == ours - {GraphRecommender, RemoteRecommender}
