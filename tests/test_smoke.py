"""The whole chain on constructed data: the planted pattern is learnt, every artefact is there, each stage feeds the next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from foundation.artifact import load
from recdistill.cli import main
from tests.constructed import write_chain_dataset, write_tiny_llm

STAGES = ["distill", "quantize", "export tensorrt", "bench"]
SEED = "seed-0"


def test_whole_chain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is published for Linux on x86-64 only")
    data, llm = write_chain_dataset(tmp_path / "chain"), write_tiny_llm(tmp_path / "tiny-llm")
    options = ["--recipe", "recipes/smoke.toml", "--data", str(data), "--teacher", str(llm), "--runs", str(tmp_path / "runs")]
    results = {stage: run([*stage.split(), *options], capsys) for stage in STAGES}

    rows = results["distill"]["rows"]
    assert rows["popularity"]["ndcg_at_10"] < 0.3
    for name in ("control-id", "control-text", "teacher", "student"):
        assert rows[name]["ndcg_at_10"] > 0.75, f"{name} did not learn the planted pattern: {rows[name]}"

    runs = tmp_path / "runs" / "chain"
    report = json.loads((runs / "report" / "report.json").read_text())
    assert report["targets_sha256"] == results["distill"]["targets_sha256"]
    by_name = {row["variant"]: row for row in report["rows"]}
    for name in ("control-id", "control-text", "teacher", "student"):
        assert by_name[name]["status"] == "ok"
        assert by_name[name]["ndcg_at_10"] == pytest.approx(rows[name]["ndcg_at_10"], abs=0.01)
        assert by_name[name]["latency_p50_s"] > 0
        assert by_name[name]["num_parameters"] == rows[name]["num_parameters"]
    for name in ("student-int8", "student-int4", "teacher-int8", "teacher-nf4"):
        assert by_name[name]["ndcg_at_10"] > 0.75
        assert by_name[name]["artifact_bytes"] < by_name[name.split("-")[0]]["artifact_bytes"]
    assert report["full_depth_teacher"]["num_parameters"] == by_name["teacher"]["num_parameters"]
    if not torch.cuda.is_available():
        assert by_name["student-trt"]["status"] == "built, not run"
        assert not {"ndcg_at_10", "latency_p50_s", "throughput_per_s"} & set(by_name["student-trt"])

    digest = {name: load(runs / SEED / name).digest for name in ("control-id", "teacher", "targets", "student", "onnx/student")}
    fed = {"targets": "teacher", "student": "targets", "onnx/student": "student", "student-int8": "onnx/student"}
    fed |= {"student-int4": "onnx/student", "student-trt": "onnx/student", "teacher-int8": "teacher", "teacher-nf4": "teacher"}
    for stage, source in fed.items():
        artifact = load(runs / SEED / stage)
        artifact.verify()
        assert digest[source] in artifact.manifest["inputs"].values(), f"{stage} was not made from {source}"

    again = run(["distill", *options], capsys, said="reusing")
    assert again["rows"] == rows


def run(command: list[str], capsys: pytest.CaptureFixture[str], said: str = "") -> dict:
    """One stage's result; `said` must be on standard error."""
    code = main(command)
    captured = capsys.readouterr()
    assert code == 0, captured.err[-2000:]
    assert said in captured.err
    return json.loads(captured.out.splitlines()[-1])
