"""The latency gate: its statistics on samples of known nature, its procedure, its processes, its reports."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

import benchmark.gate.check as check_module
from benchmark.gate import prove
from benchmark.gate.check import Verdict, check, check_time
from benchmark.gate.checkpoint import drawn_checkpoint
from benchmark.gate.command import REPOSITORY, Asked, check_latency, not_compared
from benchmark.gate.config import Budgets, GateSection
from benchmark.gate.explain import figures, junit, markdown, text
from benchmark.gate.measure import LATENCY, THROUGHPUT, GateError, Samples, Side, measure, ranked
from benchmark.gate.revision import UsageError, checked_out, checkout_name, exported, resolve
from benchmark.gate.verdict import Finding, estimate, holm, judge, unfit
from export.config import ExportSection
from export.onnx_graph import build_onnx
from foundation.artifact import Unavailable, make
from recommender.config import StudentSection
from recommender.data import load_dataset
from recommender.evaluate import recommend_all
from recommender.ranking import pad_left
from recommender.runtimes.base import GRAPH, ITEM_IDS
from recommender.runtimes.onnxruntime import OnnxRecommender
from recommender.split import Sequences, build_sequences
from recommender.student import load_student

SHAPE = StudentSection(hidden_size=16, num_layers=1, max_length=16)
QUICK = GateSection(groups=2, max_groups=4, blocks=2, block_s=0.005, warmup_s=0.01, num_items=200, batch_size=8, resamples=200)


def noise(ratio: float = 1.0, spread: float = 0.01, groups: int = 5, seed: int = 0) -> np.ndarray:
    """ln ratios as a machine gives them: processes differ, and blocks within them."""
    rng = np.random.default_rng(seed)
    return np.log(ratio) + rng.normal(0, spread, (groups, 1)) + rng.normal(0, spread, (groups, 6))


# --- statistics


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    held = [
        found.low <= 1.03 <= found.high for found in (estimate(noise(1.03, groups=10, seed=s), 1.0, 400) for s in range(200))
    ]
    assert 0.85 <= np.mean(held) <= 0.99


def test_findings() -> None:
    budgets, section = {LATENCY: 1.05}, GateSection()

    def finding(values: np.ndarray) -> Finding:
        return judge({LATENCY: values}, budgets, section)[0].finding

    assert finding(noise(1.10)) is Finding.SLOWER
    assert finding(noise(1.00)) is Finding.WITHIN
    assert finding(noise(1.05, 0.02)) is Finding.UNCLEAR
    assert finding(noise(1.00, 0.10)) is Finding.UNCLEAR
    assert finding(noise(1.04, 0.001)) is Finding.WITHIN  # surely slower, but within what is allowed
    judged = judge({LATENCY: noise(0.90)}, budgets, section)[0]
    assert judged.faster and judged.finding is Finding.WITHIN
    assert not judge({LATENCY: noise(1.10)}, budgets, section)[0].faster


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.02, "c": 0.5}, 0.025) == set()  # .01 > .025 / 3
    assert holm({"a": 0.008, "b": 0.0124, "c": 0.5}, 0.025) == {"a", "b"}
    assert holm({"a": 0.008, "b": 0.02, "c": 0.001}, 0.025) == {"a", "b", "c"}


def test_several_metrics_alarm_no_more_often_than_one() -> None:
    """Ratios at the tolerated value: a test at the plain level would alarm in either of two metrics twice as often."""
    alarms = 0
    for seed in range(400):
        values = {name: noise(1.02, 0.03, seed=1000 * n + seed) for n, name in enumerate("abcd")}
        p_values = {name: estimate(own, 1.02, 400).p_tolerated for name, own in values.items()}
        alarms += bool(holm(p_values, 0.025))
    assert alarms / 400 < 0.10


@pytest.mark.parametrize(
    ("control", "reason"),
    [(noise(1.0), ""), (noise(1.05, 0.002), "of base against itself is 1.0"), (noise(1.0, 0.3), "as wide as")],
)
def test_a_machine_that_cannot_judge_is_told_by_its_control(control: np.ndarray, reason: str) -> None:
    found = unfit({LATENCY: control}, GateSection())
    assert (reason in found) if reason else not found


# --- procedure


def simulated(monkeypatch: pytest.MonkeyPatch, head: Callable[[int], np.ndarray], control: np.ndarray) -> None:
    """Replace the clock by samples: `head(n)` is the n-th measurement."""
    calls = iter(range(100))

    def fake(*args: object) -> Samples:
        values = head(next(calls))
        return Samples({LATENCY: values}, {LATENCY: control[: len(values)]}, np.ones((len(values), 2)))

    monkeypatch.setattr(check_module, "measure", fake)


def verdict_of(section: GateSection | None = None) -> tuple[Verdict, int]:
    side = Side("side", Path(), Path())
    outcome, _ = check_time(side, side, Path(), section or GateSection(budgets=Budgets(throughput_time=0.0)))
    return outcome.verdict, outcome.groups


def test_pass_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    simulated(monkeypatch, lambda n: noise(1.0, seed=n), noise())
    assert verdict_of() == (Verdict.PASS, 5)


def test_fail_needs_a_second_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    simulated(monkeypatch, lambda n: noise(1.1, seed=n), noise())
    assert verdict_of() == (Verdict.FAIL, 10)
    simulated(monkeypatch, lambda n: noise(1.1 if n == 0 else 0.99, 0.005, seed=n), noise())
    assert verdict_of() == (Verdict.UNCLEAR, 15)  # a bad moment: the fresh processes did not confirm it


def test_more_groups_are_measured_where_it_is_not_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    simulated(monkeypatch, lambda n: noise(1.045, 0.05, seed=3 + n), noise())
    assert verdict_of() == (Verdict.UNCLEAR, 15)
    assert Verdict.UNCLEAR.exit_code == 0


def test_what_was_not_confirmed_is_not_reported_as_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    simulated(monkeypatch, lambda n: noise(1.3 if n == 0 else 0.99, 0.01, seed=n), noise())
    side = Side("side", Path(), Path())
    outcome, _ = check_time(side, side, Path(), GateSection(budgets=Budgets(throughput_time=0.0)))
    assert outcome.verdict is Verdict.UNCLEAR
    assert ElementTree.fromstring(junit(outcome)).get("failures") == "0"
    assert "FAIL" not in text(outcome, "head", "base")


def test_a_control_that_differs_in_the_second_reading_is_unfit(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))

    def fake(*args: object) -> Samples:
        n = next(calls)
        return Samples({LATENCY: noise(1.3, seed=n)}, {LATENCY: noise(1.0, 0.4 if n else 0.01, seed=n)}, np.ones((5, 2)))

    monkeypatch.setattr(check_module, "measure", fake)
    assert verdict_of()[0] is Verdict.UNFIT


def test_an_unfit_machine_says_so_whatever_head_looks_like(monkeypatch: pytest.MonkeyPatch) -> None:
    side = Side("side", Path(), Path())
    for ratio in (1.0, 1.3):
        simulated(monkeypatch, lambda n, ratio=ratio: noise(ratio, seed=n), noise(1.05, 0.001))
        outcome, _ = check_time(side, side, Path(), GateSection(budgets=Budgets(throughput_time=0.0)))
        assert (outcome.verdict, outcome.groups) == (Verdict.UNFIT, 15)
        suite = ElementTree.fromstring(junit(outcome))
        assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("1", "0", "1")
    assert Verdict.UNFIT.exit_code == 3


def test_identical_sides_do_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise twice as large as this design was made for."""
    for seed in range(60):
        simulated(monkeypatch, lambda n, seed=seed: noise(1.0, 0.04, seed=100 * seed + n), noise())
        assert verdict_of()[0] is not Verdict.FAIL


# --- processes


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Side, Sequences]:
    folder = tmp_path_factory.mktemp("gate")
    student, data = drawn_checkpoint(SHAPE, QUICK.num_items, folder)
    sequences = build_sequences(load_dataset(data))
    section = ExportSection(parity_histories=20)

    def build(draft) -> None:
        build_onnx(load_student(student), sequences, section, student.digest, draft)

    graph = make(folder / "graph", "onnx", recipe={}, inputs={}, build=build)
    return Side("side", graph.file(GRAPH), REPOSITORY), sequences


def histories_file(sequences: Sequences, folder: Path) -> Path:
    np.save(folder / "h.npy", pad_left([sequences.history(u, "test") for u in sequences.evaluated_users], 16))
    return folder / "h.npy"


def test_a_planted_slow_down_is_seen_as_large_as_it_is(served: tuple[Side, Sequences], tmp_path: Path) -> None:
    side, sequences = served
    slow = Side("slow", side.graph, side.checkout, slowdown=1.0)
    section = QUICK.model_copy(update={"blocks": 6, "block_s": 0.02})
    samples = measure(slow, side, histories_file(sequences, tmp_path), section, groups=3)
    assert samples.groups == 3
    for metric in (LATENCY, THROUGHPUT):
        assert samples.head[metric].shape == samples.control[metric].shape == (3, 6)
        # Twice as long; wide bounds, because a test may have to share its cores.
        assert 1.4 < np.exp(np.median(samples.head[metric] - samples.control[metric])) < 2.9
    assert (samples.peak_rss > 20e6).all()


def test_nobody_works_twice_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does finds its caches warm. Base is in the middle; head and its control take turns to be the first."""
    blocks: list[list[Any]] = []

    class Fake:
        def __init__(self, side: Side) -> None:
            self.side = side

        def ask(self, request: str) -> dict[str, float]:
            if request.startswith("run"):
                blocks[-1].append(self)
            return {"median_s": 1.0, "peak_rss_bytes": 1.0}

    @contextmanager
    def serving(side: Side, *_: Any) -> Iterator[Fake]:
        yield Fake(side)

    monkeypatch.setattr("benchmark.gate.measure._serving", serving)
    head, base = (Side(name, Path("x"), Path("x")) for name in ("head", "base"))
    for group in range(2):
        blocks.append([])
        measure(head, base, Path("x"), QUICK, 1, first=group)
    assert [[block.side for block in own[:3]] for own in blocks] == [[head, base, base], [base, base, head]]
    for own in blocks:
        assert len(own) == 2 * 3 * QUICK.blocks and len(set(own)) == 3
        assert all(one is not next_one for one, next_one in pairwise(own))


def test_a_whole_check(served: tuple[Side, Sequences], tmp_path: Path) -> None:
    side, sequences = served
    users = sequences.evaluated_users
    histories = [sequences.history(u, "test") for u in users]
    slow = Side("slow", side.graph, side.checkout, slowdown=3.0)
    outcome = check(slow, side, histories, None, tmp_path, QUICK)
    assert outcome.verdict is not Verdict.PASS  # fail; or unfit or unclear where a neighbour takes the machine
    assert outcome.overlap == 1.0
    assert {entry.metric: entry.ratio for entry in outcome.counted if entry.metric != "peak_rss"} == {
        "artifact_bytes": 1.0,
        "ndcg_at_10": 1.0,
    }


def test_lists_are_made_by_each_sides_own_code(served: tuple[Side, Sequences], tmp_path: Path) -> None:
    side, sequences = served
    histories = [sequences.history(u, "test") for u in sequences.evaluated_users]
    np.save(tmp_path / "whole.npy", pad_left(histories))
    here = recommend_all(OnnxRecommender(side.graph, 1), histories, 20)
    np.testing.assert_array_equal(ranked(side, tmp_path / "whole.npy", 1), here)
    (tmp_path / "recommender" / "runtimes").mkdir(parents=True)
    for package in ("recommender", "recommender/runtimes"):
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "recommender" / "runtimes" / "onnxruntime.py").write_text(
        "import numpy as np\n"
        "class OnnxRecommender:\n"
        "    def __init__(self, graph, num_threads): pass\n"
        "    def recommend(self, history_BL, k): return np.full((len(history_BL), k), 7), None\n"
    )
    other = replace(side, name="other", checkout=tmp_path)
    assert (ranked(other, tmp_path / "whole.npy", 1) == 7).all()


def test_a_side_that_cannot_be_served_is_named(tmp_path: Path) -> None:
    (tmp_path / GRAPH).write_bytes(b"no graph")
    np.save(tmp_path / "h.npy", np.ones((2, 3), np.int64))
    side = Side("the base", tmp_path / GRAPH, REPOSITORY)
    with pytest.raises(GateError, match=r"the base cannot serve .*model.onnx: "):
        measure(side, side, tmp_path / "h.npy", QUICK, groups=1)


def test_another_ranking_is_an_accuracy_failure(
    served: tuple[Side, Sequences], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side, sequences = served
    model = onnx.load(side.graph)
    table = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = np.frombuffer(table.raw_data, np.float32)
    table.raw_data = (values + np.random.default_rng(0).normal(0, values.std() / 3, len(values))).astype(np.float32).tobytes()
    onnx.save(model, tmp_path / GRAPH)
    histories = [sequences.history(u, "test") for u in sequences.evaluated_users]
    simulated(monkeypatch, lambda n: noise(1.0, seed=n), noise())
    section = GateSection(budgets=Budgets(throughput_time=0.0))
    outcome = check(Side("other", tmp_path / GRAPH, REPOSITORY), side, histories, None, tmp_path, section)
    assert outcome.verdict is Verdict.FAIL
    assert {entry.metric: entry.within for entry in outcome.counted} == {
        "peak_rss": True,
        "artifact_bytes": True,
        "ndcg_at_10": False,
    }
    shown = text(outcome, "HEAD", "main (abc)")
    assert "FAIL ndcg_at_10" in shown and "ok   latency_p50" in shown and shown.splitlines()[-1].startswith("FAIL: ")
    suite = ElementTree.fromstring(junit(outcome))
    assert (suite.get("tests"), suite.get("failures")) == ("4", "1")
    assert [case.get("name") for case in suite if case.find("failure") is not None] == ["ndcg_at_10"]
    assert "| ndcg_at_10 | FAIL |" in markdown(outcome, "HEAD", "main")
    assert json.loads(json.dumps(figures(outcome)))["metrics"]["ndcg_at_10"]["within"] is False


# --- revisions


def git(folder: Path, *command: str) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    return subprocess.run(["git", *settings, *command], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_a_revision_is_checked_out_beside_the_working_tree(tmp_path: Path) -> None:
    repository, folder = tmp_path / "repository", tmp_path / "work"
    repository.mkdir()
    folder.mkdir()
    git(repository, "init")
    (repository / "f.txt").write_text("old")
    git(repository, "add", ".")
    git(repository, "commit", "-m", "one")
    (repository / "f.txt").write_text("new, not committed")
    commit = resolve("HEAD", repository)
    assert commit == git(repository, "rev-parse", "HEAD")
    checkout = checked_out(commit, repository, folder)
    assert (checkout / "f.txt").read_text() == "old"
    assert checked_out(commit, repository, folder) == checkout
    assert (repository / "f.txt").read_text() == "new, not committed"
    assert checkout_name(repository) == f"{commit[:12]}-dirty"
    git(repository, "checkout", "f.txt")
    assert checkout_name(repository) == commit[:12]
    assert checkout_name(tmp_path) == ""
    with pytest.raises(UsageError, match="'no-such' is no git revision"):
        resolve("no-such", repository)


def test_a_base_without_a_gate_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "f.txt").write_text("no package at all")
    git(repository, "init")
    git(repository, "add", ".")
    git(repository, "commit", "-m", "from before the gate")
    monkeypatch.setattr("benchmark.gate.command.REPOSITORY", repository)
    asked = Asked("HEAD", junit=tmp_path / "j.xml", history=tmp_path / "h.jsonl")
    code, found = check_latency(asked, SHAPE, QUICK, tmp_path / "work")
    assert (code, found["verdict"]) == (0, "NO_BASE")
    assert capsys.readouterr().out.splitlines()[-1].endswith("is from before the gate")
    case = ElementTree.parse(tmp_path / "j.xml").getroot()[0]
    assert case.find("skipped") is not None
    line = json.loads((tmp_path / "h.jsonl").read_text())
    assert (line["verdict"], line["metrics"], line["commit"]) == ("NO_BASE", {}, git(repository, "rev-parse", "HEAD")[:12])


def test_a_graph_is_exported_anew_by_each_code(tmp_path: Path) -> None:
    """Code is no part of an artefact's key: what another revision left there must not be measured."""
    student, data = drawn_checkpoint(SHAPE, QUICK.num_items, tmp_path)
    checkout = tmp_path / "checkout"
    (checkout / "recdistill").mkdir(parents=True)
    out, sizes = tmp_path / "graph", []
    for extra in (0, 100):
        cli = f"""
import sys, json
sys.path.insert(0, {str(REPOSITORY)!r})
from pathlib import Path
from foundation.artifact import make
import onnx
from onnx import TensorProto, helper
value = helper.make_tensor("w", TensorProto.FLOAT, [{extra} + 1], [1.0] * ({extra} + 1))
output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [{extra} + 1])
graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [output], [value])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
assert sys.argv[-1] == "export.first_layer_table=true", sys.argv
make(Path(sys.argv[4]), "onnx", recipe={{}}, inputs={{}}, build=lambda d: onnx.save(model, d.path / "model.onnx"))
"""
        (checkout / "recdistill" / "__init__.py").touch()
        (checkout / "recdistill" / "cli.py").write_text(cli)
        options = ["export.first_layer_table=true"]
        sizes.append(exported("base", checkout, sys.executable, student.path, data.path, out, options).stat().st_size)
    assert sizes[1] > sizes[0] + 300


def test_revisions_export_as_the_recipe_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a disk that is full while they do makes the machine unfit, not this checkout slow."""
    repository, asked_for = tmp_path / "repository", []
    (repository / "benchmark" / "gate").mkdir(parents=True)
    for file in ("pyproject.toml", "benchmark/gate/revision.py"):
        shutil.copyfile(REPOSITORY / file, repository / file)
    git(repository, "init")
    git(repository, "add", ".")
    git(repository, "commit", "-m", "a revision with a gate")
    monkeypatch.setattr("benchmark.gate.command.REPOSITORY", repository)

    def full(*args: Any) -> Path:
        asked_for.append(args[-1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("benchmark.gate.command.exported", full)
    export = ExportSection(k=10, first_stage_dims=8, first_stage_items=90, inputs=["exclude", "query"])
    code, found = check_latency(Asked("HEAD"), SHAPE, QUICK, tmp_path / "work", export)
    assert (code, found["verdict"]) == (3, "UNFIT") and "No space left" in found["reason"]
    two_stages = ["export.first_stage_dims=8", "export.first_stage_items=90"]
    assert asked_for == [['export.inputs=["exclude"]', *two_stages, "export.min_overlap=0.0"]]  # and 20 items, as by default


def test_options_that_mean_nothing_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--head names an artefact"):
        check_latency(Asked("HEAD", head="runs/x"), SHAPE, QUICK, tmp_path)
    with pytest.raises(UsageError, match="go together"):
        check_latency(Asked("HEAD", student=tmp_path), SHAPE, QUICK, tmp_path)


def test_artefacts_are_compared_with_each_other(
    served: tuple[Side, Sequences], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(served[0].graph.parent)
    with pytest.raises(UsageError, match="--head DIR"):
        check_latency(Asked(folder), SHAPE, QUICK, tmp_path / "work")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    asked = Asked(folder, head=folder, junit=tmp_path / "junit.xml", history=tmp_path / "history.jsonl")
    generous = QUICK.model_copy(
        update={"budgets": Budgets(latency_p50=3.0, throughput_time=3.0), "max_unfit": 2.0, "max_width": 9.0}
    )
    code, found = check_latency(asked, SHAPE, generous, tmp_path / "work")
    assert (code, found["verdict"]) == (0, "PASS")
    assert ElementTree.parse(tmp_path / "junit.xml").getroot().get("failures") == "0"
    assert "Latency gate: PASS" in (tmp_path / "summary.md").read_text()
    assert json.loads((tmp_path / "history.jsonl").read_text())["verdict"] == "PASS"
    assert "PASS: every metric is within its budget" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("broken", "code", "verdict", "mark"), [("head", 1, "FAIL", "failure"), ("base", 3, "UNFIT", "skipped")]
)
def test_a_side_that_does_not_run_fails_where_it_is_the_head(
    served: tuple[Side, Sequences],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    broken: str,
    code: int,
    verdict: str,
    mark: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    whole = served[0].graph.parent

    def build(draft) -> None:
        model = onnx.load(whole / GRAPH)
        model.graph.node[-1].domain = "of.another.runtime"  # a valid graph that this one cannot open
        model.opset_import.append(onnx.helper.make_opsetid("of.another.runtime", 1))
        onnx.save(model, draft.path / GRAPH)
        shutil.copyfile(whole / ITEM_IDS, draft.path / ITEM_IDS)

    bad = make(tmp_path / "broken", "onnx", recipe={}, inputs={}, build=build).path
    sides = {"head": whole, "base": whole} | {broken: bad}
    asked = Asked(str(sides["base"]), head=str(sides["head"]), junit=tmp_path / "j.xml", history=tmp_path / "h.jsonl")
    found_code, found = check_latency(asked, SHAPE, QUICK, tmp_path / "work")
    assert (found_code, found["verdict"]) == (code, verdict)
    assert f"{bad} cannot serve" in found["reason"]
    case = ElementTree.parse(tmp_path / "j.xml").getroot()[0]
    assert case.get("name") == "served" and case.find(mark) is not None
    *_, told, last = capsys.readouterr().out.splitlines()
    if broken == "base":  # on GitHub a warning stands beside the change, where nothing is red
        assert last.startswith(f"::warning title=Latency gate UNFIT::{told}")
        last = told
    assert f"{verdict}: {bad} cannot serve" in last
    assert json.loads((tmp_path / "h.jsonl").read_text())["metrics"] == {}


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (GateError("this checkout", "cannot export the checkpoint: error: no such option"), Verdict.FAIL),
        (GateError("main (abc)", "cannot export the checkpoint: error: no such option"), Verdict.UNFIT),
        (GateError("this checkout", "cannot export the checkpoint: failed: out of memory (std::bad_alloc)"), Verdict.UNFIT),
        (GateError("this checkout", "cannot serve g: OSError: [Errno 28] No space left on device"), Verdict.UNFIT),
        (Unavailable("the environment of main cannot be made"), Verdict.UNFIT),
    ],
)
def test_whose_fault_it_is_that_nothing_was_compared(error: GateError | Unavailable, verdict: Verdict) -> None:
    outcome = not_compared(error, "this checkout")
    assert (outcome.verdict, outcome.reason) == (verdict, str(error))
    assert str(error) in text(outcome, "this checkout", "main (abc)")
    assert f"| served | {'FAIL' if verdict is Verdict.FAIL else '?'} | {error} |" in markdown(outcome, "h", "b")


# --- the proof


def test_the_ledger_resumes_and_begins_anew_for_another_gate(
    served: tuple[Side, Sequences], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def run(kind: prove.Kind, *args: object) -> dict:
        made.append(kind)
        slow = bool(kind.slowdown)
        return {**prove.asdict(kind), "verdict": "FAIL" if slow else "PASS", "seconds": 20.0, "groups": 5, "faster": False,
                "ratios": {LATENCY: 1.1 if slow else 1.0, THROUGHPUT: 1.0}, "counted": {"peak_rss": 1.0}, "reason": "",
                "hardware": "a PC", "naive_ratio": 1.2}  # fmt: skip

    monkeypatch.setattr(prove, "_run", run)
    monkeypatch.setattr(prove, "exported", lambda *args: served[0].graph)
    plan = {prove.Kind(0.0, 1.05, hog=False): 3, prove.Kind(0.0, 1.02, hog=False): 1, prove.Kind(0.1, 1.05, hog=False): 2}
    monkeypatch.setattr(prove, "PLAN", plan)
    ledger = tmp_path / "results" / "gate.json"
    prove.prove_gate(SHAPE, QUICK, ledger, tmp_path, max_minutes=1e-9)
    found = prove.prove_gate(SHAPE, QUICK, ledger, tmp_path, max_minutes=0)
    assert len(made) == found["runs_done"] == 6
    assert (found["aa_tight"]["runs"], found["aa_tight"]["false_alarms"]) == (1, 0)
    assert found["hardware"] == {"a PC": 6}
    assert (found["aa_runs"], found["aa_false_alarms"], found["naive_false_alarm_rate"]) == (3, 0, 1.0)
    assert [(entry["runs"], entry["caught"]) for entry in found["planted"]] == [(2, 2)]
    prove.prove_gate(SHAPE, QUICK, ledger, tmp_path, max_minutes=0)
    assert len(made) == 6
    prove.prove_gate(SHAPE, QUICK.model_copy(update={"resamples": 300}), ledger, tmp_path, max_minutes=0)
    assert len(made) == 12
    ledger.write_text(json.dumps({"gate_sha256": "another", "runs": [{"of": "another form"}]}))
    prove.prove_gate(SHAPE, QUICK, ledger, tmp_path, max_minutes=0)
    assert len(made) == 18
    for damaged in ("[]", '{"runs": []}', '{"gate_sha256": 3', json.dumps({**json.loads(ledger.read_text()), "runs": [{}]})):
        ledger.write_text(damaged)
        with pytest.raises(UsageError, match="is no ledger of the gate"):
            prove.prove_gate(SHAPE, QUICK, ledger, tmp_path, max_minutes=0)
        assert ledger.read_text() == damaged


def test_bounds_of_a_rate() -> None:
    assert prove.upper95(0, 300) == pytest.approx(1 - 0.05 ** (1 / 300))
    assert prove.upper95(0, 300) < 0.01 < prove.upper95(1, 300)
    assert prove.upper95(0, 0) is None
