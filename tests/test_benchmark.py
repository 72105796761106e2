"""The runner: what a planted delay looks like, what becomes of a variant that fails, ratios within rounds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmark.accuracy import stage_before
from benchmark.catalogue import drawn_graph
from benchmark.ceiling import measure_ceilings, operations_in_torch, operations_of_graph, share_of_limit
from benchmark.config import BenchmarkSection
from benchmark.gpu import Meter
from benchmark.markdown import to_markdown
from benchmark.report import Row, _estimates, build_report, comparisons
from benchmark.runner import _ended, failure, measure, round_ratios, run_process
from benchmark.variants import serving_bytes, status_of
from benchmark.worker import WATCH, Job, NoNumbers, _Checked, run_job
from distill.train_student import build_student
from export.graph import ServingGraph
from export.onnx_graph import serving_model
from export.parity import ParityError
from foundation.artifact import Artifact, ArtifactError, Draft, Unavailable, make
from recdistill.pipeline import Pipeline
from recommender.baselines import build_baseline
from recommender.config import OptimSection, StudentSection
from recommender.split import Sequences
from recommender.student import load_student, save_student

STUDENT = StudentSection(hidden_size=16, num_layers=2, max_length=12)
SECTION = BenchmarkSection(rounds=2, num_histories=40, single_s=0.05, offline_s=0.05, server_s=0.1, warmup_s=0.0)
HISTORIES = np.ones((100, 3), np.int64)


@pytest.fixture(scope="module")
def popularity(dataset: Artifact, sequences: Sequences, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("baseline") / "popularity"
    return make(out, "popularity", recipe={}, inputs={}, build=lambda draft: build_baseline("popularity", sequences, draft))


@pytest.fixture
def student(sequences: Sequences, tmp_path: Path) -> Artifact:
    section = STUDENT.model_copy(update={"optim": OptimSection(epochs=2, batch_size=32)})
    recipe = {"student": section.model_dump(mode="json")}
    build = lambda draft: build_student("control-id", sequences, section, 0, draft)  # noqa: E731
    return make(tmp_path / "student", "student", recipe=recipe, inputs={}, seed=0, build=build)


def job(artifact: Path, histories: Path, data: str = "") -> Job:
    np.save(histories, HISTORIES)
    return Job(str(artifact), "", SECTION.model_dump(), histories=str(histories), data=data)


def test_what_fails_becomes_a_result_that_says_so(popularity: Artifact, tmp_path: Path) -> None:
    good, bad = job(popularity.path, tmp_path / "h.npy"), job(tmp_path / "none", tmp_path / "h.npy")
    results = measure({"good": good, "bad": bad}, SECTION, tmp_path)
    assert len(results["good"]) == 2
    assert failure(results["good"]) is None
    assert len(results["bad"]) == 1
    assert "not an artefact" in str(failure(results["bad"]))
    late = run_process(good, SECTION.model_copy(update={"timeout_s": 0.01}), tmp_path)
    assert "no step finished within" in late["error"]


def test_what_a_process_began_ends_with_it(popularity: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler in a process of its own, say."""
    starts = tmp_path / "starts.sh"
    starts.write_text(f"#!/bin/sh\nsleep 300 &\necho $! > {tmp_path / 'pid'}\nwait\n")
    starts.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(starts))
    result = run_process(job(popularity.path, tmp_path / "h.npy"), SECTION.model_copy(update={"timeout_s": 1.0}), tmp_path)
    assert "no step finished" in result["error"]
    until = time.monotonic() + 5
    while (state := Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")).exists() and time.monotonic() < until:
        if state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    assert not state.exists()


def test_a_long_task_is_no_hang(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    work = "import sys, time, pathlib\nfor _ in range(12):\n    time.sleep(.25)\n    pathlib.Path(sys.argv[1]).touch()\n"
    for code, ended in ((work, True), ("import time\ntime.sleep(60)\n", False)):
        alive.touch()
        process = subprocess.Popen([sys.executable, "-c", code, str(alive)])
        assert _ended(process, alive, patience_s=2.0) is ended
        process.kill()
        process.wait()


def test_a_process_that_the_kernel_ended_lacked_memory(
    popularity: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tmp_path / "killed.sh"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    result = run_process(job(popularity.path, tmp_path / "h.npy"), SECTION, tmp_path)
    assert result == {"error": "out of memory: the kernel ended it"}


def test_an_interrupted_measurement_goes_on_with_its_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, str]] = []
    mended = ["yes"]

    def run(job: Job, section: BenchmarkSection, folder: Path) -> dict[str, Any]:
        if len(ran) == 3:
            ran.append(("", "interrupted"))
            raise KeyboardInterrupt
        ran.append((job.artifact, job.data))
        return {"error": "no memory"} if job.artifact == "c" and not mended else {"figure": len(ran)}

    monkeypatch.setattr("benchmark.runner.run_process", run)
    jobs = {name: Job(name, "", {}, data="data") for name in "abc"}
    with pytest.raises(KeyboardInterrupt):
        measure(jobs, SECTION, tmp_path)
    results = measure(jobs, SECTION, tmp_path)
    assert ran == [("a", "data"), ("b", "data"), ("c", "data"), ("", "interrupted"), ("b", ""), ("c", ""), ("a", "")]
    assert [[own["figure"] for own in results[name]] for name in "abc"] == [[1, 7], [2, 5], [3, 6]]
    assert measure(jobs, SECTION, tmp_path) == results and len(ran) == 7
    monkeypatch.setattr("benchmark.runner.environment", lambda num_threads: {"cpu": "another"})
    mended.clear()
    assert failure(measure(jobs, SECTION, tmp_path)["c"]) == "no memory" and len(ran) == 7 + 5
    mended.append("yes")
    assert not failure(measure(jobs, SECTION, tmp_path)["c"]) and len(ran) == 12 + 6  # all anew: its ratios are within rounds


@pytest.mark.parametrize("served", ["pytorch", "onnx"])
def test_answers_that_are_no_numbers_are_a_failure(student: Artifact, dataset: Artifact, tmp_path: Path, served: str) -> None:
    """Weights are looked at when an artefact is written; what overflows on the way shows in the answers alone."""
    broken = load_student(student)
    with torch.no_grad():
        broken.norm.weight.fill_(3e38)
    what = {"data": str(dataset.path), "top": str(tmp_path / "top.npy")}
    if served == "onnx":
        made = drawn_graph(broken, serving_model(ServingGraph(broken, 20), [], 21, ""), tmp_path / "graph")
    else:
        recipe, what["runtime"] = student.recipe, "pytorch"
        made = make(tmp_path / "nan", "student", recipe=recipe, inputs={}, build=lambda draft: save_student(broken, draft))
    result = run_process(Job(str(made.path), made.digest, SECTION.model_dump(), **what), SECTION, tmp_path)
    assert re.search(r"NoNumbers: (scores are NaN for|the lists of) \d+ of", result["error"])
    assert not (tmp_path / "top.npy").exists()


def test_a_worker_ends_with_its_parent(popularity: Artifact, tmp_path: Path) -> None:
    section = SECTION.model_copy(update={"warmup_s": 300.0})
    job = Job(str(popularity.path), "", section.model_dump(), histories=str(tmp_path / "h.npy"))
    np.save(tmp_path / "h.npy", HISTORIES)
    job.write(tmp_path / "job.json")
    files = [str(tmp_path / name) for name in ("job.json", "result.json", "alive")]
    command = [sys.executable, "-m", "benchmark.worker", *files, WATCH]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(5)
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait(10) == 1
    assert not (tmp_path / "result.json").exists()


def test_report_keeps_failed_rows_and_measures_the_rest(popularity: Artifact, dataset: Artifact, tmp_path: Path) -> None:
    damaged = make(
        tmp_path / "damaged",
        "item-knn",
        recipe={},
        inputs={},
        seed=0,
        build=lambda d: (d.path / "x.txt").write_text("?") and None,
    )
    rows = [Row("popularity", [popularity, popularity]), Row("item-knn", [damaged])]
    draft = Draft(tmp_path / "report")
    build_report(rows, dataset, np.ones((61, 2)), popularity, STUDENT, SECTION.model_copy(update={"max_users": 9}), draft)

    report = json.loads((draft.path / "report.json").read_text())
    good, bad = report["rows"]
    assert good["status"] == "ok"
    assert report["protocol"]["users"] == 9 == np.load(draft.checkpoint / "top-popularity-1.npy").shape[0]
    assert good["ndcg_at_10_per_seed"] == [pytest.approx(good["ndcg_at_10"])] * 2
    assert good["throughput_per_s"] > 0
    assert {"coverage", "gini", "novelty_bits"} < set(good["beyond_accuracy"])
    assert good["peak_rss_bytes"] > 2**20
    assert bad["status"].startswith("failed:")
    assert "ndcg_at_10" not in bad
    assert "latency_p50_s" not in bad
    assert "failed:" in to_markdown(report)


def test_scores_that_are_nan_are_seen_where_lists_look_whole() -> None:
    class Served:
        def __init__(self, score: float) -> None:
            self.score = score

        def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            return np.tile(np.arange(1, k + 1), (len(history_BL), 1)), np.full((len(history_BL), k), self.score, np.float32)

    steps: list[int] = []
    _Checked(Served(-np.inf), lambda: steps.append(1)).recommend(HISTORIES, 5)
    assert steps == [1]
    with pytest.raises(NoNumbers, match="NaN for 100 of 100"):
        _Checked(Served(np.nan), lambda: steps.append(1)).recommend(HISTORIES, 5)


def test_the_bound_of_a_percentile_is_that_of_the_worst_round() -> None:
    rounds = [{"latency_estimates_s": own} for own in ({"p90": 0.2, "p99": 0.5}, {"p90": 0.3}, {"p90": 0.1})]
    assert _estimates(rounds) == {"p90": 0.3, "p99": 0.5}  # what all samples together have is no more


def test_what_cannot_be_made_is_a_row_that_says_why() -> None:
    for error, said, broken in (
        (Unavailable("no GPU"), "no GPU", False),
        (ParityError("the graph ranks differently\nmore of it"), "the graph ranks differently", True),
        (MemoryError(), "MemoryError", True),
    ):

        def fail(seed: int, error: BaseException = error) -> Artifact:
            raise error

        row = Pipeline._row("student-int8", fail, [0])
        assert (row.variant, row.missing, row.artifacts, row.broken) == ("student-int8", said, [], broken)

    def damaged(seed: int) -> Artifact:
        raise ArtifactError("runs/x was made differently; pass --overwrite")

    with pytest.raises(ArtifactError):  # the user's to mend
        Pipeline._row("student-int8", damaged, [0])


def test_every_engine_that_ran_is_a_row() -> None:
    engines = [{"file": f"{precision}.engine"} for precision in ("fp32", "fp16", "int8")]
    files = {engine["file"]: {"bytes": number} for number, engine in enumerate(engines, 1)} | {"item_ids.json": {"bytes": 9}}
    manifest = {"kind": "tensorrt", "files": files, "metrics": {"engines": engines, "status": "built, not run"}}
    built = Row("student-trt", [Artifact(Path("trt"), manifest)])
    assert built.engines() == [built] and serving_bytes(built.artifacts[0]) == 1
    ran = manifest | {"metrics": manifest["metrics"] | {"ran": ["fp16.engine", "int8.engine"]}}
    rows = Row("student-trt", [Artifact(Path("trt"), ran)]).engines()
    assert [(row.variant, row.graph) for row in rows] == [
        ("student-trt", {}),
        ("student-trt-int8", {"engine": "int8.engine"}),
    ]
    assert [serving_bytes(row.artifacts[0], row.graph.get("engine", "")) for row in rows] == [2, 3]
    assert stage_before("student-trt-int8") == "student" and status_of(rows[0].artifacts[0]) == "ok"


def test_the_full_benchmark(student: Artifact, dataset: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates, batches, larger catalogues (one of them too large), the student in PyTorch beside the graph made of it."""
    monkeypatch.setattr("benchmark.catalogue.SIZES", (100, 10**12))
    section = SECTION.model_copy(update={"full": True, "rounds": 1})
    rows = [Row("student-pytorch", [student], runtime="pytorch")]
    draft = Draft(tmp_path / "report")
    build_report(rows, dataset, np.ones((61, 2)), student, STUDENT, section, draft, {"student": student})
    report = json.loads((draft.path / "report.json").read_text())
    (row,) = report["rows"]
    assert row["status"] == "ok" and row["runtime"] == "pytorch cpu" and row["operations"]["single"] > 0
    assert row["artifact_bytes"] == 4 * row["num_parameters"] and row["peak_gpu_bytes"] is None
    assert [step["batch_size"] for step in row["batches"][0]][:3] == [1, 2, 4] and row["max_rate"][0]["rate_per_s"] >= 0
    assert [point["num_items"] for point in report["catalogue_sweep"]] == [100, 10**12]
    assert [point["status"][:6] for point in report["catalogue_sweep"]] == ["ok", "failed"]
    assert report["catalogue_sweep"][0]["throughput_per_s"] > 0
    assert draft.metrics["failed"] == [] and draft.metrics["failed_sizes"] == [f"catalogue of {10**12}"]
    step = row["max_rate"][0]["steps"][0]
    assert step["p50_s"] <= step["p90_s"] <= step["p99_s"]
    assert "catalogue of 100" in json.loads((draft.path / "raw_speed.json").read_text())
    assert [epoch["epoch"] for epoch in report["training"]["student"]] == [0, 1]
    page = (draft.path / "report.html").read_text()
    assert all(name in page for name in ("Larger catalogues", "Requests at random instants", "Training"))


def test_what_comes_late_and_fails_takes_nothing_with_it(
    student: Artifact, dataset: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operations that cannot be counted, a machine that cannot be measured: the row stays, the page says what is missing."""

    def here(job: Job, section: BenchmarkSection, folder: Path) -> dict[str, Any]:
        return {"error": "out of memory"} if job.ceiling else run_job(job)

    def uncounted(*_: Any) -> int:
        raise KeyError("MatMul_7")

    monkeypatch.setattr("benchmark.runner.run_process", here)
    monkeypatch.setattr("benchmark.worker.ceiling.operations_in_torch", uncounted)
    draft, rows = Draft(tmp_path / "report"), [Row("student-pytorch", [student], runtime="pytorch")]
    build_report(rows, dataset, np.ones((61, 2)), student, STUDENT, SECTION, draft)
    report = json.loads((draft.path / "report.json").read_text())
    assert report["rows"][0]["status"] == "ok" and report["rows"][0]["throughput_per_s"] > 0
    assert "share_of_limit" not in report["rows"][0] and report["ceiling"] == {}
    assert report["not_measured"] == {
        "machine": "out of memory",
        "student-pytorch, operations": "KeyError: 'MatMul_7'",
    }
    assert draft.metrics["failed"] == ["machine"]
    for face in ("report.md", "report.html"):
        assert "Not measured: machine: out of memory." in (draft.path / face).read_text()


def test_ratios_are_taken_within_rounds() -> None:
    base = [{"throughput_per_s": pace} for pace in (100.0, 50.0, 10.0)]
    twice = [{"throughput_per_s": 2 * entry["throughput_per_s"]} for entry in base]
    assert round_ratios(twice, base) == {"median": 2.0, "ci95": [2.0, 2.0], "per_round": [2.0, 2.0, 2.0]}


def test_comparisons_pair_users_and_seeds() -> None:
    rng = np.random.default_rng(0)
    old_SU = rng.integers(0, 5, (3, 200))
    found = comparisons({"student": np.where(old_SU == 2, 1, old_SU), "control-text": old_SU})
    gain = found["student over control-text"]
    assert 0 < gain["ci95"][0] < gain["relative"] < gain["ci95"][1]
    assert len(gain["per_seed"]) == 3
    once = comparisons({"student": old_SU, "student-trt": np.where(old_SU == 2, 1, old_SU)[:1]})  # an engine of one seed
    assert len(once["student-trt over student"]["per_seed"]) == 1 and once["student-trt over student"]["relative"] > 0


def test_every_variant_is_compared_with_the_stage_before_and_what_is_served_with_the_teacher() -> None:
    rank_SU = np.random.default_rng(0).integers(0, 5, (1, 200))
    names = ("popularity", "control-id", "control-text", "control-tuned", "ease", "ease-text", "ease-words")
    names += ("teacher", "teacher-nf4", "student", "student-new")
    told = list(comparisons(dict.fromkeys(names, rank_SU)))
    assert told == [
        "control-text over control-id",
        "control-tuned over control-text",
        *("ease over control-id", "ease-text over control-text", "ease-text over ease"),
        *("ease-words over control-text", "ease-words over ease", "ease-text over ease-words"),
        *(f"{taught} over {other}" for taught in ("teacher", "student") for other in names[1:7]),
        "teacher-nf4 over teacher",
        "student over teacher",
        "student-new over student",
        "student-new over teacher",
    ]


def test_operations_are_counted_as_by_hand(tmp_path: Path) -> None:
    """A graph of one product, and the same product in PyTorch."""
    import onnx
    import torch
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [7, 5], [1.0] * 35)
    nodes = [
        helper.make_node("Cast", ["history"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("history", TensorProto.INT64, ["batch", "length"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), tmp_path / "g.onnx")
    assert operations_of_graph(tmp_path / "g.onnx", 3, 7) == 2 * 3 * 7 * 5

    class Torch:
        def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            return (torch.from_numpy(history_BL).float() @ torch.ones(7, 5)).numpy(), np.zeros(0)

    assert operations_in_torch(Torch(), np.ones((3, 7), np.int64), 1) == 2 * 3 * 7 * 5


def test_the_limit_is_the_slower_of_computing_and_reading() -> None:
    ceiling = {"gemm_per_s": {"fp32": 100.0, "bf16": 200.0}, "bytes_per_s": 10.0}
    assert share_of_limit(4.0, 200, 10, "fp32", ceiling) == 0.5
    assert share_of_limit(4.0, 200, 30, "int8 weights, bf16", ceiling) == 0.75
    assert share_of_limit(4.0, 200, 30, "int4", ceiling) is None


def test_a_machine_can_compute_and_copy() -> None:
    found = measure_ceilings(1)
    assert ("cuda" in found) == torch.cuda.is_available()
    assert found["cpu"]["gemm_per_s"]["fp32"] > 1e9
    assert found["cpu"]["bytes_per_s"] > 1e8


def test_without_a_gpu_the_driver_says_nothing() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    for meter in (Meter(on_gpu=True), Meter(on_gpu=False)):
        assert meter.process_bytes() is None and meter.joules() is None


@pytest.mark.gpu
def test_the_driver_counts_memory_and_energy() -> None:
    held = torch.ones(1 << 26, device="cuda")  # 256 MiB
    meter = Meter(on_gpu=True)
    found, before_j = meter.process_bytes(), meter.joules()
    assert meter.device is not None
    assert found is None or found > 1 << 28  # None where process numbers are another namespace's
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        held.mul_(1.0)
        torch.cuda.synchronize()
    after_j = meter.joules()
    assert before_j is None or (after_j is not None and after_j > before_j)
