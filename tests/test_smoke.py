"""The whole chain on constructed data: the planted pattern is learnt, every artefact is there, each stage feeds the next."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from distill.ease import load_ease
from distill.evaluation import kept_history
from foundation.artifact import load
from quantize.methods import SERVED_METHODS
from recdistill.cli import main
from recommender.config import StudentSection
from recommender.student import Student
from tests.constructed import write_chain_dataset, write_tiny_llm
from tools import distill_figures

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
    assert {name: len(epochs) for name, epochs in report["training"].items()} == {
        **dict.fromkeys(("control-id", "control-text", "student"), 10),
        "teacher": 5,
    }
    for name in ("control-id", "control-text", "teacher", "student"):
        assert by_name[name]["status"] == "ok"
        assert by_name[name]["ndcg_at_10"] == pytest.approx(rows[name]["ndcg_at_10"], abs=0.01)
        assert by_name[name]["latency_p50_s"] > 0
        assert by_name[name]["num_parameters"] == rows[name]["num_parameters"]
    for name in ("student-int8", "student-int4", "student-int8-qdq", "teacher-int8", "teacher-nf4"):
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
    exports(runs / SEED, options, capsys)


def test_an_ensemble_teaches(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """LLM, control-text, two views (both seeds), EASE by text and by words teach the student; the control, who has no LLM."""
    data, llm = write_chain_dataset(tmp_path / "chain", num_users=80), write_tiny_llm(tmp_path / "tiny-llm")
    options = ["--recipe", "recipes/smoke.toml", "--data", str(data), "--teacher", str(llm), "--runs", str(tmp_path / "runs")]
    keys = ["seeds=[0, 1]", "distill.ensemble_control=true", "targets.seeds=all"]
    members = "teacher = 2.0, control-text = 1.0, view-short = 1.0, view-words = 0.5, ease-text = 0.5, ease-words = 0.25"
    keys += [f"targets.members={{{members}}}"]
    keys += ["views.short.max_tokens=2", "views.words.encoder=words", "ease.l2=20.0"]
    keys += ["teacher.optim.epochs=2", "student.optim.epochs=3"]
    keys += ["regularisers={history_contrast = {weight = 0.1}, text_alignment = {}}"]
    keys += ["distill.objectives={forward_kl = {}, hidden = {squared = 0.1}, minilm = {relation_heads = 1}}"]
    keys += ["distill.follow_audit=true", "distill.dropout=0.3"]
    trained_with = list[float]()

    def student(section: StudentSection, *rest: Any) -> Student:
        trained_with.append(section.dropout)
        return Student(section, *rest)

    monkeypatch.setattr("distill.train_student.Student", student)
    options += ["--tensorboard", str(tmp_path / "events")]
    found = run(["distill", *options, *(word for key in keys for word in ("--set", key))], capsys)
    assert {"control-ensemble-kd", "student", "ease", "ease-text", "ease-words"} < set(found["rows"])
    assert {"student over control-ensemble-kd", "control-ensemble-kd over control-text"} < set(found["comparisons"])
    runs = tmp_path / "runs" / "chain"
    digest = {
        f"{arm}-{seed}": load(runs / f"seed-{seed}" / arm).digest
        for arm in ("teacher", "control-text", "view-short", "view-words")
        for seed in (0, 1)
    }
    ease, by_text, by_words = (load(runs / name) for name in ("ease", "ease-text", "ease-words"))
    digest |= {"ease-text": by_text.digest, "ease-words": by_words.digest}
    view, text = load(runs / "view-short"), load(runs / "text")
    assert view.recipe["text"] == text.recipe["text"] | {"max_tokens": 2}
    assert load(runs / "seed-1" / "view-short").manifest["inputs"]["text"] == view.digest != text.digest
    words = load(runs / "view-words")
    assert set(words.manifest["inputs"]) == {"data"} and words.recipe["text"]["encoder"] == "words"
    assert load(runs / "seed-0" / "view-words").manifest["inputs"]["text"] == words.digest
    both, control = (load(runs / name).manifest["inputs"] for name in ("targets", "targets-control-ensemble-kd"))
    assert {name: both[name] for name in digest} == digest
    assert {name for name in control if name != "data"} == {"control-text-0", "control-text-1", "ease"}
    assert control["ease"] == ease.digest and set(ease.manifest["inputs"]) == {"data"}
    assert by_text.manifest["inputs"]["text"] == text.digest
    assert set(by_words.manifest["inputs"]) == {"data"} and set(by_words.recipe["text"]) == {"prompt", "student_dims"}
    weight_II, words_II, text_II = (load_ease(one).weight_II for one in (ease, by_words, by_text))
    assert (words_II - weight_II).abs().max() > 1e-3 < (words_II - text_II).abs().max()
    members = load(runs / "targets-control-ensemble-kd").recipe["targets"]["members"]
    assert members == {"control-text": 1.0, "ease": 0.75}
    audit = load(runs / "seed-0" / "audit")
    assert {name: audit.manifest["inputs"][f"member {name}"] for name in digest} == digest
    assert load(runs / "seed-0" / "student").manifest["inputs"]["audit"] == audit.digest
    terms = {arm: set(kept_history(load(runs / "seed-0" / arm))[0]) for arm in ("control-id", "control-text", "student")}
    known = {"epoch", "validation_ndcg_at_10", "loss", "label", "history_contrast"}
    assert terms["control-id"] == known and terms["control-text"] == known | {"text_alignment"}
    assert terms["student"] == terms["control-text"] | {"forward_kl", "hidden", "minilm"}
    assert json.loads((runs / "targets" / "index.json").read_text())["states"] == ["hidden", "query", "key", "value"]
    assert load(runs / "seed-0" / "control-id").recipe["regularisers"]["text_alignment"] == {
        "weight": 0.1,
        "temperature": 0.1,
        "same_text": 0.99,
    }
    assert sorted(trained_with) == [0.1] * 8 + [0.3] * 4, "of both seeds' control-id, control-text and views, and of the taught"
    assert {"alignment", "uniformity_of_text"} < set(load(runs / "seed-0" / "student").metrics)
    assert len(list((tmp_path / "events" / "chain").glob("seed-*/*/events.*"))) == 14  # six arms and the teacher, twice
    for seed in (0, 1):
        for arm, name in (("student", "targets"), ("control-ensemble-kd", "targets-control-ensemble-kd")):
            assert load(runs / f"seed-{seed}" / arm).manifest["inputs"]["targets"] == load(runs / name).digest
    sets = [word for key in (*keys, f"teacher.llm={llm}") for word in ("--set", key)]
    figures(found, ["--recipe", str(Path("recipes/smoke.toml").resolve()), "--data", str(data), *sets], monkeypatch)


def figures(found: dict[str, Any], options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written of these runs for docs/results is what `recdistill distill` said of them."""
    folder = Path(options[options.index("--data") + 1]).parent
    monkeypatch.chdir(folder)
    ledger = folder / "docs" / "results" / "distill-chain.json"
    ledger.parent.mkdir(parents=True)
    row = {part: {"ndcg_at_10": 0.1, "over_control_text": {"relative": 0.0}} for part in ("validation", "test")}
    (ledger.parent / "ablation-chain.json").write_text(
        json.dumps({"users": 1000, "rows": {"rrd alone": {**row, "arm": "student"}}})
    )
    monkeypatch.setattr(distill_figures, "RUNTIMES", ("onnxruntime",))
    for phases in (
        ["accuracy", "speed"],
        ["curves", "audit", "members", "ablation", "again=runs/chain", "--over", "control-id"],
        ["sample"],
    ):
        distill_figures.main([*phases, *options])
    told = json.loads(ledger.read_text())
    assert told["comparisons"] == found["comparisons"] and told["targets_sha256"] == found["targets_sha256"]
    on_validation = told["comparisons_on_validation"]["student over control-text"]["relative"]
    means = [told["arms"][arm]["validation_ndcg_at_10"] for arm in ("student", "control-text")]
    assert on_validation == pytest.approx(sum(means[0]) / sum(means[1]) - 1)
    assert told["student_vs_ensemble_kd"] == found["comparisons"]["student over control-ensemble-kd"]
    for arm, own in told["arms"].items():
        made = found["rows"][arm]
        assert own["ndcg_at_10"] == pytest.approx(made["ndcg_at_10"])
        assert sum(own["validation_ndcg_at_10"]) / 2 == pytest.approx(made["validation_ndcg_at_10"])
    for arm, own in told["learning_curves"].items():
        assert [len(curve) for curve in own] == ([2, 2] if arm == "teacher" else [3, 3])
    paces = {name: row["throughput_per_s"] for name, row in told["speed"]["rows"].items()}
    assert told["arms"]["student"]["throughput_per_s"] == paces["student, onnxruntime"] > paces["teacher"]
    assert told["speed"]["student_over"]["teacher"]["median"] == pytest.approx(paces["student, onnxruntime"] / paces["teacher"])
    assert told["full_depth_teacher"]["throughput_per_s"] == paces["full-depth teacher"]
    assert told["speed"]["rows"]["teacher"]["num_parameters"] == told["arms"]["teacher"]["num_parameters"]
    assert told["members"]["validation"]["ndcg_at_10"] == told["audit"]["seed-0"]["ensemble"]["validation_ndcg_at_10"]
    assert told["members"]["test"]["student_over_members"] and set(told["members"]) == {"validation", "test"}
    assert set(told["audit"]) == {"seed-0", "seed-1"} and told["comparisons_by_slice"]["student over control-text"]
    assert told["ablation"]["student: again"] == told["ablation"]["student: recipe"]
    assert told["ablation"]["rrd alone, 1,000 users"] == row
    over = told["ablation"]["student: again"]["test"]["over_control_id"]
    assert over["relative"] == found["comparisons"]["student over control-id"]["relative"]
    assert options[options.index("--data") + 1] not in ledger.read_text()
    another = [*options, "--set", "student.dropout=0.7"]
    with pytest.raises(SystemExit, match="of another recipe"):
        distill_figures.main(["accuracy", *another])
    assert json.loads(ledger.read_text()) == told
    ledger.unlink()
    with pytest.raises(SystemExit, match=r"seed-0/control-id was made by another recipe: its section student differs"):
        distill_figures.main(["accuracy", *another])
    assert not ledger.exists()


def test_whoever_needs_a_student_first_hears_of_its_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, llm = write_chain_dataset(tmp_path / "chain", num_users=80), write_tiny_llm(tmp_path / "tiny-llm")
    options = ["--recipe", "recipes/smoke.toml", "--data", str(data), "--teacher", str(llm), "--runs", str(tmp_path / "runs")]
    options += ["--set", "teacher.optim.epochs=1", "--set", "student.optim.epochs=1"]
    assert main(["export", "onnx", *options]) == 0
    told = capsys.readouterr().err
    assert told.count("audit: teacher over control-text") == 1
    assert told.index("audit: teacher over control-text") < told.index(
        f"made {tmp_path / 'runs' / 'chain' / SEED / 'student'} "
    )
    run(["distill", *options], capsys, said="audit: teacher over control-text")
    assert main(["export", "onnx", *options]) == 0
    assert "audit:" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "all_of_them"), [("text.layers=[15]", r"[-1]"), ("views.a.layers=[3]", r"[-1]"), ("teacher.num_layers=3", "0")]
)
def test_an_llm_too_shallow_for_the_recipe_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, all_of_them: str
) -> None:
    data, llm = write_chain_dataset(tmp_path / "chain", num_users=80), write_tiny_llm(tmp_path / "tiny-llm")
    options = ["--recipe", "recipes/smoke.toml", "--data", str(data), "--teacher", str(llm), "--runs", str(tmp_path / "runs")]
    assert main(["distill", *options, "--set", key]) == 2
    name = key.partition("=")[0]
    assert f"has 2 layers; --set {name}={all_of_them} takes them all" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "chain" / SEED).exists()


def test_an_llm_that_reads_texts_teaches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, llm = write_chain_dataset(tmp_path / "chain", num_users=80), write_tiny_llm(tmp_path / "tiny-llm")
    options = ["--recipe", "recipes/smoke.toml", "--data", str(data), "--teacher", str(llm), "--runs", str(tmp_path / "runs")]
    keys = ["teacher.items=text", "teacher.item_tokens=6", "teacher.optim.epochs=2", "student.optim.epochs=2"]
    keys += ["distill.follow_audit=true", "teacher.item_init=random"]
    options += [word for key in keys for word in ("--set", key)]
    found = run(["distill", *options], capsys)
    assert {"teacher", "student"} < set(found["rows"])
    seed = tmp_path / "runs" / "chain" / SEED
    assert load(seed / "student").manifest["inputs"]["audit"] == load(seed / "audit").digest
    assert found["rows"]["teacher"]["num_parameters"] > 64 * 50  # a vocabulary is part of it
    code = main(["distill", *options, "--set", "teacher.item_init=control-text"])
    assert code == 2 and "which a teacher of teacher.items = 'text' has not" in capsys.readouterr().err


def exports(made: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What can be done with the student's graph: verified, described, appended to, laid out for Triton."""
    verified = run(["export", "verify", *options], capsys)["rows"]
    assert {row["graph"] for row in verified} == {"student-fp32", "student-fp16", *(f"student-{m}" for m in SERVED_METHODS)}
    assert all(row["overlap"] >= 0.97 for row in verified if row["precision"] == "fp32")
    described = run(["export", "describe", str(made / "onnx/student")], capsys)
    assert described["inputs"] == {"history": "int64[batch, length]"}

    items, out = made / "new.parquet", made / "onnx/student-v2"
    pl.DataFrame({"item_id": ["n1", "n2"], "title": ["thing 12", "thing 71"]}).write_parquet(items)
    engines = ["--engines"] if find_spec("tensorrt_rtx") else []
    added = run(["export", "append", str(items), str(out), *engines, *options], capsys, said="making")
    assert not engines or [engine["precision"] for engine in added["engines"]["engines"]] == ["fp32"]
    before, after = (json.loads((folder / "item_ids.json").read_text()) for folder in (made / "onnx/student", out))
    assert after == [*before, "n1", "n2"]
    pl.DataFrame({"item_id": ["n3"], "title": ["thing 5"]}).write_parquet(items)
    more = ["export", "append", str(items), f"{out}3", "--graph", str(out), *options]
    assert run(more, capsys)["appended"]["of"] == len(before) + 3
    encoder = run(["export", "text-encoder", *options], capsys)
    assert encoder["cosine_min"] > 0.98 and (Path(encoder["path"]) / "tokenizer.json").is_file()
    written = [encoder["path"]]
    if find_spec("openvino"):
        converted = run(["export", "openvino", *options], capsys)
        assert converted["parity"]["overlap"] > 0.99
        written.append(converted["path"])
    if find_spec("tritonclient"):
        repository = run(["export", "triton", *options], capsys)
        written.append(repository["path"])
        assert (Path(repository["path"]) / "recommender/1/model.onnx").is_file()
    for path in written:
        assert run(["export", "describe", path], capsys)["digest"]


def run(command: list[str], capsys: pytest.CaptureFixture[str], said: str = "") -> dict:
    """One stage's result; `said` must be on standard error."""
    code = main(command)
    captured = capsys.readouterr()
    assert code == 0, captured.err[-2000:]
    assert said in captured.err
    return json.loads(captured.out.splitlines()[-1])
