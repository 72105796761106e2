"""The teacher audit: calibration, overlap, slices, and a student that follows it."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distill.audit import build_audit, tell, worse_slices
from distill.calibration import calibrate, ece, nll
from distill.config import DistillSection, TargetsSection, TeacherSection
from distill.members import TeacherMember
from distill.objectives import METHODS, build_objectives, build_state_objectives
from distill.objectives.config import STATES
from distill.regularisers import build_regularisers
from distill.targets import Targets, build_targets, load_targets
from distill.teacher import load_teacher, new_teacher, save_teacher
from distill.train_student import Losses, build_student
from foundation.artifact import Artifact, Draft, make
from recommender.baselines import build_baseline
from recommender.config import OptimSection, StudentSection
from recommender.slices import position_slices
from recommender.split import Sequences
from recommender.student import Student, load_student
from recommender.windows import TrainingWindows
from tests.faults import forge

TEXT = np.random.default_rng(0).normal(size=(61, 8)).astype(np.float32)
TEACHER = TeacherSection(tuning="full", item_size=16, max_length=12, precision="fp32", item_dropout=0.0)
STUDENT = StudentSection(hidden_size=16, num_layers=1, max_length=12, optim=OptimSection(epochs=1, batch_size=16))


def drawn(sharpness: float, num: int = 6000) -> tuple[torch.Tensor, torch.Tensor]:
    """Requests whose targets follow known distributions, told `sharpness` times too sharply."""
    generator = torch.Generator().manual_seed(0)
    logits_NI = 2 * torch.randn(num, 10, generator=generator)
    target_N = torch.multinomial(logits_NI.softmax(-1), 1, generator=generator)[:, 0]
    return (sharpness * logits_NI).log_softmax(-1), target_N


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_planted_is_found(sharpness: float) -> None:
    log_probability_NI, target_N = drawn(sharpness)
    found = calibrate(log_probability_NI, target_N)
    assert found.temperature == pytest.approx(sharpness, rel=0.06)
    assert found.ece_at_temperature < 0.02
    assert found.requests == 6000
    assert found.nll_at_temperature <= found.nll + 1e-6
    if sharpness != 1:
        assert found.ece > 4 * found.ece_at_temperature


def test_errors_equal_their_definitions() -> None:
    log_probability_NI, target_N = drawn(2.0, 300)
    p_NI = (log_probability_NI / 1.7).double().exp()
    p_NI /= p_NI.sum(1, keepdim=True)
    gap = 0.0
    for low in range(15):
        rows = [n for n in range(300) if low / 15 <= p_NI[n].max() < (low + 1) / 15]
        if rows:
            confidence = np.mean([float(p_NI[n].max()) for n in rows])
            accuracy = np.mean([float(p_NI[n].argmax() == target_N[n]) for n in rows])
            gap += len(rows) / 300 * abs(accuracy - confidence)
    assert ece(log_probability_NI, target_N, 1.7) == pytest.approx(gap, abs=1e-6)
    assert nll(log_probability_NI, target_N, 1.7) == pytest.approx(
        -np.mean([np.log(float(p_NI[n, target_N[n]])) for n in range(300)]), rel=1e-5
    )


def test_slices_of_positions_are_those_of_the_windows(sequences: Sequences) -> None:
    found, count_I = position_slices(sequences), sequences.train_counts()
    windows = TrainingWindows(sequences, 4)
    assert all(member_P.shape == (windows.num_positions,) for member_P in found.values())
    for batch in windows.overlapping(8):
        for position, label in zip(batch.position_BL[batch.label_BL > 0], batch.label_BL[batch.label_BL > 0], strict=True):
            user = int(np.searchsorted(windows.first_U, position - 1, side="right") - 1)
            history = position - windows.first_U[user]
            assert sequences.train(user)[history] == label
            assert found["short histories"][position - 1] == (history <= 5)
            assert found["tail items"][position - 1] == (count_I[label] <= 6)  # its own not counted


def test_an_end_is_in_slices_of_histories_only(sequences: Sequences) -> None:
    plain, found = position_slices(sequences), position_slices(sequences, ends=True)
    trained = [sequences.train(u) for u in range(sequences.num_users)]
    length_E = np.array([len(items) for items in trained if len(items)])
    for name, member_P in found.items():
        assert (member_P[: -len(length_E)] == plain[name]).all()
        expected = {"short histories": length_E <= 5, "long histories": length_E >= 20}.get(name, np.zeros(len(length_E), bool))
        assert (member_P[-len(length_E) :] == expected).all()


def test_a_label_does_not_make_its_own_item_known() -> None:
    """Item 1 is a label six times in all, item 2 once; each user's last two items are for evaluation."""
    users = [[3, 1, 4, 5]] * 6 + [[3, 2, 4, 5]]
    offsets = np.arange(0, 4 * len(users) + 1, 4)
    sequences = Sequences([str(u) for u in range(7)], list("abcde"), offsets, np.concatenate(users))
    found = position_slices(sequences)
    assert found["tail items"].tolist() == [True] * 7 and found["cold items"].tolist() == [False] * 6 + [True]


@pytest.fixture(scope="module")
def teacher(tiny_llm: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    torch.manual_seed(0)
    made = new_teacher(tiny_llm, TEXT, TEACHER)
    recipe = {"teacher": TEACHER.model_dump(mode="json")}

    def build(draft: Draft) -> None:
        save_teacher(made, tiny_llm, draft)
        ranks_are_bad(draft)

    return make(tmp_path_factory.mktemp("teacher") / "t", "teacher", recipe=recipe, inputs={}, build=build)


def ranks_are_bad(draft: Draft) -> None:
    """Ranks as `record_accuracy` keeps them: no hit at all."""
    import polars as pl

    pl.DataFrame({"user_id": [""] * 200, "validation": [0] * 200, "test": [0] * 200}).write_parquet(
        draft.path / "ranks.parquet"
    )


@pytest.fixture(scope="module")
def others(sequences: Sequences, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    def control(draft: Draft) -> None:
        build_student("control-text", sequences, STUDENT, 0, draft, text_IZ=TEXT)

    folder, recipe = tmp_path_factory.mktemp("others"), {"student": STUDENT.model_dump(mode="json")}
    return {
        "popularity": make(
            folder / "p", "popularity", recipe={}, inputs={}, build=lambda draft: build_baseline("popularity", sequences, draft)
        ),
        "control-text": make(folder / "c", "control-text", recipe=recipe, inputs={}, build=control),
    }


def test_those_who_teach_are_judged_together(
    teacher: Artifact, others: dict[str, Artifact], sequences: Sequences, tmp_path: Path
) -> None:
    """An ensemble of control-text alone is control-text; one of mostly the untrained teacher is worse, and heeded as such."""
    control = others["control-text"]
    judged = {}
    for name, members in (("same", [(2.0, control)]), ("worse", [(50.0, teacher), (1.0, control)])):
        build = lambda draft, members=members: build_audit(teacher, others, sequences, draft, members)  # noqa: E731
        judged[name] = make(tmp_path / name, "audit", recipe={}, inputs={}, build=build)
    told = {name: json.loads(audit.file("audit.json").read_text())["ensemble"] for name, audit in judged.items()}
    assert told["same"]["overlap_at_20"]["control-text"] == 1
    assert told["same"]["validation_ndcg_at_10"] == pytest.approx(control.metrics["validation"]["ndcg_at_10"])
    assert worse_slices(judged["same"]) == [] and "popularity" in judged["same"].metrics["ensemble"]["beats"]
    assert worse_slices(judged["worse"]) and told["worse"]["over"]["control-text"]["all"]["ci95"][1] < 0
    assert told["worse"]["calibration"]["requests"] == len(sequences.evaluated_users)


def test_the_audit_finds_what_is_planted(
    teacher: Artifact,
    others: dict[str, Artifact],
    sequences: Sequences,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    audit = make(
        tmp_path / "a", "audit", recipe={}, inputs={}, build=lambda draft: build_audit(teacher, others, sequences, draft)
    )
    told = json.loads(audit.file("audit.json").read_text())
    assert audit.metrics["teacher"]["beats"] == [] and set(audit.metrics) & {"teacher", "ensemble"} == {"teacher"}
    assert "all" not in worse_slices(audit)
    assert worse_slices(audit)  # it has no hit anywhere, and control-text has
    capsys.readouterr()
    tell(audit)
    said = capsys.readouterr().err
    assert "teacher over control-text: NDCG@10 -100.0% [-100.0%, -100.0%] (loses)" in said
    assert f"{worse_slices(audit)[0]} -100.0% [-100.0%, -100.0%] (loses)" in said and "ensemble" not in said
    control = others["control-text"].metrics["validation"]["ndcg_at_10"]
    assert told["others"]["control-text"] == pytest.approx(control) and f"control-text {control:.4f}" in said
    assert "top 20 it shares" in said and "at temperature" in said
    assert told["teacher"]["calibration"]["requests"] == len(sequences.evaluated_users)
    assert told["teacher"]["calibration"]["temperature"] == audit.metrics["teacher"]["temperature"]
    shared = told["teacher"]["overlap_at_20"]
    assert all(0 <= share <= 1 for share in shared.values()) and len(shared) == 2
    for found in told["teacher"]["over"]["control-text"].values():
        if found:
            found["ci95_of_family" if "ci95_of_family" in found else "ci95"] = [-0.1, 0.1]
    assert told["teacher"]["over"]["control-text"]["all"]["ci95"] == [-0.1, 0.1], "of all users there is but one"
    (audit.path / "audit.json").write_text(json.dumps(told))
    forge(audit.path)
    assert worse_slices(audit) == []


def targets_of(teacher: Artifact, sequences: Sequences, out: Path, ends: bool) -> Targets:
    """The teacher's distributions and states."""
    member, section = TeacherMember(load_teacher(teacher)), TargetsSection(top_k=5, ends=ends)
    build = lambda draft: build_targets(member, sequences, section, draft, list(chain(*STATES.values())))  # noqa: E731
    return load_targets(make(out, "targets", recipe={}, inputs={}, build=build), sequences.num_items)


@pytest.fixture(scope="module")
def targets(teacher: Artifact, sequences: Sequences, tmp_path_factory: pytest.TempPathFactory) -> Targets:
    return targets_of(teacher, sequences, tmp_path_factory.mktemp("targets") / "t", ends=False)


@pytest.fixture(scope="module")
def targets_with_ends(teacher: Artifact, sequences: Sequences, tmp_path_factory: pytest.TempPathFactory) -> Targets:
    return targets_of(teacher, sequences, tmp_path_factory.mktemp("targets") / "e", ends=True)


def test_shards_are_the_same_on_every_device(
    teacher: Artifact, sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU takes more rows at once; what one has begun another may go on with."""
    member, shards = TeacherMember(load_teacher(teacher)), []
    monkeypatch.setattr("distill.targets._SHARD_WINDOWS", 64)
    for rows in (16, 43):
        monkeypatch.setattr("distill.targets.rows_at_once", lambda *_, rows=rows, **__: rows)
        made = make(
            tmp_path / str(rows),
            "targets",
            recipe={},
            inputs={},
            build=lambda draft: build_targets(member, sequences, TargetsSection(top_k=5), draft),
        )
        names = json.loads(made.file("index.json").read_text())["shards"]
        shards.append([load_file(made.file(name))["position"].tolist() for name in names])
    assert len(shards[0]) > 2 and shards[0] == shards[1]


def test_ends_are_taught_beside_what_was_taught_already(
    targets: Targets, targets_with_ends: Targets, sequences: Sequences
) -> None:
    num_labels, num_ends = len(targets.index_PK), sum(len(sequences.train(u)) > 0 for u in range(sequences.num_users))
    assert (targets.ends, targets_with_ends.ends) == (False, True)
    assert len(targets_with_ends.index_PK) == num_labels + num_ends
    np.testing.assert_allclose(targets_with_ends.probability_PK[:num_labels], targets.probability_PK, atol=1e-3)


def student_of_chunks(sequences: Sequences, monkeypatch: pytest.MonkeyPatch, max_scores: int) -> Student:
    """A student without dropout, in float64, whose losses see at most so many scores at once."""
    monkeypatch.setattr("distill.catalogue_loss._MAX_SCORES_CPU", max_scores)
    monkeypatch.setattr("distill.catalogue_loss._MIN_ROWS", 1)
    monkeypatch.setattr("distill.train_student.device", lambda: torch.device("cpu"))
    torch.manual_seed(0)
    section = STUDENT.model_copy(update={"dropout": 0.0})
    return Student(section, sequences.num_items, torch.from_numpy(TEXT)).double().eval()


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("max_scores", [1 << 22, 1000], ids=["at once", "in chunks"])
def test_the_loss_of_a_batch_equals_its_slow_definition(
    request: pytest.FixtureRequest, sequences: Sequences, monkeypatch: pytest.MonkeyPatch, max_scores: int, ends: bool
) -> None:
    """Position by position, each history without padding: the label where there is one, less where it is taught, and there
    the teacher."""
    targets = request.getfixturevalue("targets_with_ends" if ends else "targets")
    student = student_of_chunks(sequences, monkeypatch, max_scores)
    distill = DistillSection(label_weight=0.3, objectives={"forward_kl": {"weight": 0.7}})
    windows = TrainingWindows(sequences, STUDENT.max_length, ends)
    taught_P = np.random.default_rng(0).random(windows.num_positions) < 0.6
    batch = max(windows.epoch(0, 16, 0), key=lambda one: (one.history_BL == 0).sum())
    found = Losses(student, {}, targets, distill, taught_P)(batch)

    table_ID, total, label, taught, count, num_labels = student.items(), 0.0, 0.0, 0.0, 0, 0
    for history_L, label_L, position_L in zip(batch.history_BL, batch.label_BL, batch.position_BL, strict=True):
        for place in np.flatnonzero(position_L):
            known = torch.from_numpy(history_L[: place + 1][history_L[: place + 1] > 0])[None]
            log_q_I = (student(known, table_ID)[0, -1] @ table_ID[1:].T).log_softmax(0)
            own, kl = -log_q_I[label_L[place] - 1] * float(label_L[place] > 0), torch.zeros(())
            num_labels += label_L[place] > 0
            if taught_P[position_L[place] - 1]:
                index_K = torch.from_numpy(targets.index_PK[position_L[place] - 1]).long()
                p_K = torch.from_numpy(targets.probability_PK[position_L[place] - 1]).float()
                rest, left = 1 - p_K.sum(), 1 - log_q_I[index_K].exp().sum()
                kl = (p_K * (p_K.log() - log_q_I[index_K])).sum() + rest * (rest.log() - left.log())
                total = total + 0.3 * own + 0.7 * kl
            else:
                total = total + own
            label, taught, count = label + own, taught + kl, count + 1
    assert (batch.history_BL == 0).any() and taught.item() > 0
    assert (num_labels < count) == ends
    for name, expected in (("loss", total / count), ("label", label / num_labels), ("forward_kl", taught / count)):
        assert found[name].item() == pytest.approx(float(expected.detach()), rel=1e-5), name
    weights = list(student.parameters())
    for own, slow in zip(torch.autograd.grad(found["loss"], weights), torch.autograd.grad(total / count, weights), strict=True):
        assert torch.allclose(own, slow, rtol=1e-4, atol=1e-7)


EVERY_OBJECTIVE = {  # with room for every item, so that nothing is drawn
    "forward_kl": {},
    "rrd": {"num_interesting": 60, "num_uninteresting": 60},
    "dllm2rec": {"num_consistent": 3},
    "rce_kd": {"num_top": 3, "num_candidates": 60, "num_drawn": 60},
    "hidden": {},
    "minilm": {},
}


@pytest.mark.parametrize("max_scores", [1 << 22, 1000], ids=["at once", "in chunks"])
def test_no_objective_sees_padding_or_where_scores_are_cut(
    targets: Targets, sequences: Sequences, monkeypatch: pytest.MonkeyPatch, max_scores: int
) -> None:
    """Each of a padded batch, of which a part is taught, against the same one over histories without padding."""
    assert EVERY_OBJECTIVE.keys() == METHODS.keys()
    student = student_of_chunks(sequences, monkeypatch, max_scores)
    windows = TrainingWindows(sequences, STUDENT.max_length)
    taught_P = np.random.default_rng(0).random(windows.num_positions) < 0.6
    batch = max(windows.epoch(0, 16, 0), key=lambda one: (one.history_BL == 0).sum())
    found = Losses(student, {}, targets, DistillSection(objectives=EVERY_OBJECTIVE), taught_P)(batch)

    table_ID, scores, places = student.items(), [], []
    widths = {name: state.shape[1] for name, state in targets.states.items()}
    of_states = build_state_objectives(EVERY_OBJECTIVE, STUDENT.hidden_size, widths)
    held = dict.fromkeys(of_states, 0.0)
    for history_L, position_L in zip(batch.history_BL, batch.position_BL, strict=True):
        known_L, position_N = history_L > 0, position_L[position_L > 0]
        taught_L = (position_L > 0) & taught_P[position_L - 1]
        states = student.states(torch.from_numpy(history_L[known_L])[None], table_ID)
        keep_1L = torch.from_numpy(taught_L[known_L])[None]
        own, position_N = {name: state[keep_1L] for name, state in states.items()}, position_L[taught_L]
        scores.append(own["hidden"] @ table_ID[1:].T)
        places.append(position_N)
        for name, one in of_states.items():
            teacher = targets.states_at(position_N, torch.device("cpu"))
            held[name] += len(position_N) * one(own, teacher, keep_1L).item() if len(position_N) else 0.0
    score_NI, position_N = torch.cat(scores), np.concatenate(places)
    assert (batch.history_BL == 0).any() and 0 < len(position_N) < len(batch)
    teacher, share = targets.at(position_N, torch.device("cpu")), len(position_N) / len(batch)
    expected = {
        name: share * one(score_NI.log_softmax(-1), teacher).item() for name, one in build_objectives(EVERY_OBJECTIVE).items()
    }
    expected |= {name: total / len(batch) for name, total in held.items()}
    assert {name: found[name].item() for name in METHODS} == pytest.approx(expected, rel=1e-5)


def test_every_term_has_its_weight(targets: Targets, sequences: Sequences, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {name: 0.1 * number for number, name in enumerate((*METHODS, "history_contrast", "text_alignment"), 1)}
    objectives = {name: options | {"weight": weights[name]} for name, options in EVERY_OBJECTIVE.items()}
    beside = build_regularisers({name: {"weight": weights[name]} for name in weights if name not in METHODS}, has_text=True)
    student = student_of_chunks(sequences, monkeypatch, 1 << 22)
    batch = TrainingWindows(sequences, STUDENT.max_length).epoch(0, 16, 0)[0]
    found = Losses(student, beside, targets, DistillSection(objectives=objectives))(batch)
    assert found.keys() == {"loss", "label", *weights} and all(term.item() for term in found.values())
    expected = found["label"] + sum(weight * found[name] for name, weight in weights.items())
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_projector_is_trained_and_dropped(targets: Targets, sequences: Sequences, tmp_path: Path) -> None:
    narrow = STUDENT.model_copy(update={"hidden_size": 8})
    options = {"targets": targets, "distill": DistillSection(objectives={"hidden": {}})}
    learned = []

    def build(draft: Draft) -> None:
        build_student("student", sequences, narrow, 0, draft, text_IZ=TEXT, **options)
        learned.append(load_file(draft.checkpoint / "last.safetensors"))

    recipe = {"student": narrow.model_dump(mode="json")}
    student = make(tmp_path / "s", "student", recipe=recipe, inputs={}, build=build)
    assert learned[0]["weight.objectives.hidden.projector.weight"].shape == (16, 8)
    assert learned[0]["exp_avg.objectives.hidden.projector.weight"].abs().max() > 0
    assert not any("projector" in name for name in load_file(student.file("model.safetensors")))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Of which positions a student asks what the targets say, filled while it is trained."""
    positions, at = list[np.ndarray](), Targets.at
    monkeypatch.setattr(Targets, "at", lambda self, position_N, to: positions.append(position_N) or at(self, position_N, to))
    return positions


def test_a_student_is_taught_at_the_ends(
    targets_with_ends: Targets, sequences: Sequences, tmp_path: Path, asked: list[np.ndarray]
) -> None:
    recipe = {"student": STUDENT.model_dump(mode="json")}
    options = {"targets": targets_with_ends, "distill": DistillSection(objectives={"forward_kl": {}, "hidden": {}})}
    for untaught in ([], ["short histories", "cold items"]):
        asked.clear()
        build = lambda draft, untaught=untaught: build_student(  # noqa: E731
            "student", sequences, STUDENT, 0, draft, text_IZ=TEXT, untaught=untaught, **options
        )
        make(tmp_path / str(len(untaught)), "student", recipe=recipe, inputs={}, build=build)
        found = position_slices(sequences, ends=True)
        left_out_P = np.any([found[name] for name in untaught], axis=0) if untaught else np.zeros_like(found["cold items"])
        assert np.array_equal(np.sort(np.concatenate(asked)), np.flatnonzero(~left_out_P) + 1)


def test_untaught_positions_learn_from_their_labels_alone(
    targets: Targets, sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[np.ndarray]
) -> None:
    recipe = {"student": STUDENT.model_dump(mode="json")}
    untaught = ["short histories", "cold items"]
    distill = DistillSection(objectives={"forward_kl": {}, "hidden": {}})

    def build(draft: Draft) -> None:
        build_student(
            "student", sequences, STUDENT, 0, draft, text_IZ=TEXT, targets=targets, distill=distill, untaught=untaught
        )

    make(tmp_path / "s", "student", recipe=recipe, inputs={}, build=build)
    monkeypatch.setattr("distill.train_student.position_slices", lambda *_: {"all": np.ones(len(targets.index_PK), bool)})
    alike = []
    for name, options in (
        ("control", {}),
        ("deaf", {"targets": targets, "untaught": ["all"], "distill": DistillSection(label_weight=0.0)}),
    ):
        build_one = lambda draft, options=options: build_student("s", sequences, STUDENT, 0, draft, text_IZ=TEXT, **options)  # noqa: E731
        alike.append(make(tmp_path / name, "student", recipe=recipe, inputs={}, build=build_one))
    control, deaf = (load_student(artifact).state_dict() for artifact in alike)
    assert all(torch.allclose(control[name], deaf[name], atol=1e-5) for name in control)
    monkeypatch.undo()
    found = position_slices(sequences)
    expected = np.flatnonzero(~found["short histories"] & ~found["cold items"]) + 1
    assert np.array_equal(np.sort(np.concatenate(asked)), expected)
