"""The teacher around four architectures of random LLMs, its item text, its targets, its quantized variants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file
from transformers import GPT2Config, GPT2Model

import distill.llm
from distill.config import TargetsSection, TeacherSection, TextSection
from distill.evaluation import Validator, rank_of
from distill.llm import (
    TeacherError,
    build_llm,
    check_causal,
    last_projections,
    load_body,
    load_tokenizer,
    require_projections,
)
from distill.members import Ensemble, StudentMember, TeacherMember
from distill.targets import _joined, build_targets, load_targets
from distill.teacher import Teacher, full_depth_teacher, load_teacher, merged_body, new_teacher, save_teacher, serving_teacher
from distill.text import _encode_resumably, _principal_components, build_text, encode, load_text
from distill.text_items import item_tokens
from distill.train_teacher import build_teacher
from foundation.artifact import Artifact, ArtifactError, Draft, load, make
from quantize.llm import build_quantized_llm
from quantize.methods import LLM_METHODS
from recdistill.cli import main
from recommender.config import OptimSection, StudentSection
from recommender.data import load_dataset
from recommender.prompt import prompt_of
from recommender.split import Sequences
from recommender.student import Student
from recommender.windows import TrainingWindows
from tests.conftest import make_llm
from tests.constructed import write_tiny_llm
from tests.faults import forge

TEXT = np.random.default_rng(0).normal(size=(61, 8)).astype(np.float32) * np.arange(61).clip(max=1)[:, None]
SECTION = TeacherSection(tuning="full", item_size=16, max_length=12, precision="fp32", item_dropout=0.0)


def shaken(teacher: Teacher) -> Teacher:
    """Perturb every weight: LoRA starts at zero, where mistakes do not show."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in teacher.parameters():
            if parameter.is_floating_point() and parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return teacher.eval()


@pytest.fixture(scope="module", params=["llama", "qwen3", "bert", "roberta"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_llm(tmp_path_factory.mktemp(request.param), request.param)


@torch.no_grad()
def test_causal_and_blind_to_padding(llm: Artifact) -> None:
    states_of_two(shaken(new_teacher(llm, TEXT, SECTION)))


def states_of_two(teacher: Teacher) -> tuple[torch.Tensor, torch.Tensor]:
    """Two histories and their states, seen to depend neither on padding nor on what comes later."""
    table = teacher.table()
    rows = torch.tensor([[0, 0, 1, 2, 3], [4, 5, 6, 7, 8]])
    both = teacher(rows, table)
    assert torch.allclose(both[0, 2:], teacher(rows[:1, 2:], table)[0], atol=1e-5)
    assert torch.allclose(both[1], teacher(rows[1:], table)[0], atol=1e-5)
    changed = rows.clone()
    changed[:, -1] = 9
    after = teacher(changed, table)
    assert torch.allclose(after[0, 2:-1], both[0, 2:-1], atol=1e-5)  # what stands at padding positions means nothing
    assert torch.allclose(after[1, :-1], both[1, :-1], atol=1e-5)
    assert not torch.allclose(after[:, -1], both[:, -1], atol=1e-3)
    return rows, both


@torch.no_grad()
def test_a_teacher_that_reads_texts(llm: Artifact, tmp_path: Path) -> None:
    """Causal, blind to padding, the same saved as trained; what it knows of an item is its text alone."""
    section = SECTION.model_copy(update={"items": "text", "item_tokens": 5})
    tokens_IT = item_tokens(
        llm, [" ".join(f"thing {item} ( group {item % 7} )".split()[: 1 + item % 4]) for item in range(60)], 5
    )
    assert tokens_IT.shape == (61, 5) and (tokens_IT[0] == -1).all() and (tokens_IT[1:, 0] >= 0).all()
    assert len({int((row >= 0).sum()) for row in tokens_IT[1:]}) > 1
    assert len({int(row[row >= 0][-1]) for row in tokens_IT[1:]}) == 1  # all end with the separator
    teacher = shaken(new_teacher(llm, TEXT, section, tokens_IT))
    table = teacher.table()
    assert not hasattr(teacher, "id_IE") and not hasattr(teacher, "to_token")
    assert torch.allclose(table, teacher.adapter(teacher.text_IZ), atol=1e-6)
    rows, both = states_of_two(teacher)
    assert teacher(torch.zeros(2, 3, dtype=torch.long), table).isfinite().all()
    for number in range(5):  # as if the texts were one, whatever their lengths
        tokens = tokens_IT[4 : 5 + number]
        embedded = teacher.body.get_input_embeddings()(torch.from_numpy(tokens[tokens >= 0])[None])
        body = teacher.body(inputs_embeds=embedded).last_hidden_state[:, -1]
        assert torch.allclose(teacher.norm(teacher.from_hidden(body))[0], both[1, number], atol=1e-5)
    saved = make(
        tmp_path / "t",
        "teacher",
        recipe={"teacher": section.model_dump(mode="json")},
        inputs={},
        build=lambda draft: save_teacher(teacher, llm, draft),
    )
    history = np.array([[0, 1, 2], [3, 4, 5]])
    expected, found = (serving_teacher(x).recommend(history, 10) for x in (teacher, load_teacher(saved)))
    assert np.array_equal(expected[0], found[0])
    np.testing.assert_allclose(expected[1], found[1], atol=1e-5)
    assert full_depth_teacher(llm, TEXT, section, tokens_IT).num_parameters == teacher.num_parameters
    with pytest.raises(
        TeacherError, match=r"item_tokens x teacher\.max_length = 60000 tokens, and the LLM reads \d+; lower it"
    ):
        new_teacher(llm, TEXT, section, np.zeros((61, 5000), np.int64))
    with pytest.raises(TeacherError, match="minilm needs"):
        teacher.states(rows, table, projections=True)


@torch.no_grad()
@pytest.mark.parametrize(("architecture", "room"), [("bert", 512), ("roberta", 510)])
def test_what_is_longer_than_its_positions_is_refused(tmp_path: Path, architecture: str, room: int) -> None:
    """As long as they last, they are enough; RoBERTa's begin after its padding token's, number 1."""
    llm = make_llm(tmp_path, architecture)
    for length in (room, room + 1):
        section, text = SECTION.model_copy(update={"max_length": length}), TextSection(max_tokens=length)
        prompt = "thing " * (room + 10)
        if length == room:
            teacher = new_teacher(llm, TEXT, section)
            assert teacher(torch.ones(1, length, dtype=torch.long), teacher.table()).isfinite().all()
            assert np.isfinite(encode(llm, [prompt], text)).all()
        else:
            with pytest.raises(TeacherError, match=rf"^teacher.max_length = {length} tokens, and the LLM reads {room}"):
                new_teacher(llm, TEXT, section)
            with pytest.raises(TeacherError, match=rf"^text.max_tokens = {length} tokens, and the LLM reads {room}"):
                encode(llm, [prompt], text)


def test_an_llm_whose_attention_cannot_be_read_is_refused_before_it_is_trained(llm: Artifact, tmp_path: Path) -> None:
    require_projections(llm, 2)
    with pytest.raises(TeacherError, match=r"relation_heads = 3 does not divide the query of 64 of \w+Model"):
        require_projections(llm, 3)
    GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50)).save_pretrained(tmp_path / "gpt2")
    llm_of = lambda draft: build_llm(str(tmp_path / "gpt2"), draft)  # noqa: E731
    fused = make(tmp_path / "llm", "llm", recipe={}, inputs={}, build=llm_of)
    with pytest.raises(TeacherError, match="GPT2Model has no layer named q_proj or query"):
        require_projections(fused, 2)


@torch.no_grad()
def test_states_are_those_of_the_positions(llm: Artifact) -> None:
    teacher = shaken(new_teacher(llm, TEXT, SECTION))
    table = teacher.table()
    rows = torch.tensor([[0, 0, 1, 2, 3], [4, 5, 6, 7, 8]])
    both, alone = (teacher.states(x, table, projections=True) for x in (rows, rows[:1, 2:]))
    assert set(both) == {"hidden", "query", "key", "value"}
    assert torch.allclose(both["hidden"], teacher(rows, table), atol=1e-6)
    for name, state in both.items():
        assert torch.allclose(state[0, 2:], alone[name][0], atol=1e-5)
    seen = []
    name, layer = [(n, m) for n, m in teacher.body.named_modules() if n.endswith(("v_proj", ".value"))][-1]
    assert "1" in name  # the last of two layers
    hook = layer.register_forward_hook(lambda _, __, output: seen.append(output))
    teacher(rows, table)
    hook.remove()
    assert torch.allclose(both["value"][1], seen[0][1], atol=1e-6)
    assert set(teacher.states(rows, table, projections=False)) == {"hidden"}


def test_a_body_without_separate_projections_is_named() -> None:
    with (
        pytest.raises(TeacherError, match="GPT2Model has no layer named q_proj or query"),
        last_projections(GPT2Model(GPT2Config(vocab_size=4, n_embd=8, n_head=2, n_layer=1))),
    ):
        pass


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_saved_teacher_recommends_the_same(llm: Artifact, tmp_path: Path, tuning: str) -> None:
    section = SECTION.model_copy(update={"tuning": tuning, "num_layers": 1})
    teacher = shaken(new_teacher(llm, TEXT, section))
    history = np.array([[0, 1, 2], [3, 4, 5]])
    expected = serving_teacher(teacher).recommend(history, 10)
    recipe = {"teacher": section.model_dump(mode="json")}
    saved = make(tmp_path / "t", "teacher", recipe=recipe, inputs={}, build=lambda draft: save_teacher(teacher, llm, draft))
    loaded = load_teacher(saved)
    index_BK, score_BK = serving_teacher(loaded).recommend(history, 10)
    assert (index_BK == expected[0]).all()
    assert np.allclose(score_BK, expected[1], atol=1e-5)
    assert loaded.body.config.num_hidden_layers == 1


def test_it_learns_from_scores_in_float32(
    tiny_llm: Artifact, dataset: Artifact, sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its body computes in bf16 as well: scores of 8 bits are what the loss must not see."""
    items, section = load_dataset(dataset).items, TextSection(layers=[1])
    text = make(tmp_path / "x", "item-text", recipe={}, inputs={}, build=lambda d: build_text(tiny_llm, items, section, d))
    seen, cross_entropy = list[torch.Tensor](), F.cross_entropy
    monkeypatch.setattr(
        "distill.catalogue_loss.F.cross_entropy",
        lambda *given, **how: seen.append(given[0].detach()) or cross_entropy(*given, **how),
    )
    teacher = SECTION.model_copy(update={"precision": "bf16", "optim": OptimSection(epochs=1, batch_size=32)})
    build_teacher(tiny_llm, text, None, sequences, teacher, 0, Draft(tmp_path / "t"))
    logits_NI = seen[0]
    assert logits_NI.dtype == torch.float32
    assert (logits_NI.bfloat16().float() != logits_NI).float().mean() > 0.9


def test_lora_trains_factors_only(tiny_llm: Artifact) -> None:
    teacher = new_teacher(tiny_llm, TEXT, SECTION.model_copy(update={"tuning": "lora"}))
    trained = {name for name, p in teacher.body.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    plain = load_body(tiny_llm)
    with torch.no_grad():  # untouched factors merge to the pretrained weights
        merged = merged_body(teacher, tiny_llm)
    for name, parameter in merged.named_parameters():
        if "embed_tokens" not in name:
            assert torch.allclose(parameter, plain.get_parameter(name), atol=1e-6)


def test_items_can_start_at_a_trained_table(tiny_llm: Artifact) -> None:
    teacher, table_IE = new_teacher(tiny_llm, TEXT, SECTION), torch.randn(61, 16)
    token_rms = teacher.to_token(teacher.id_IE).pow(2).mean().sqrt()
    teacher.start_items_at(table_IE)
    assert torch.equal(teacher.id_IE, table_IE)
    assert 0.5 < teacher.to_token(table_IE).pow(2).mean().sqrt() / (token_rms * 2**0.5) < 2
    with pytest.raises(ValueError, match=r"teacher.item_size = 16 must equal student.hidden_size = 8"):
        teacher.start_items_at(torch.randn(61, 8))


def test_depth_and_parameters(tiny_llm: Artifact) -> None:
    one, two = (new_teacher(tiny_llm, TEXT, SECTION.model_copy(update={"num_layers": n})) for n in (1, 0))
    layer = sum(p.numel() for p in two.body.layers[1].parameters())
    assert two.num_parameters - one.num_parameters == layer
    assert full_depth_teacher(tiny_llm, TEXT, SECTION).num_parameters == two.num_parameters
    with pytest.raises(TeacherError, match="num_layers = 3, but the LLM has 2"):
        new_teacher(tiny_llm, TEXT, SECTION.model_copy(update={"num_layers": 3}))


def test_a_body_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    body = BertModel(
        BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=10)
    )
    with pytest.raises(TeacherError, match="does not read left to right"):
        check_causal(body)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_qlora_without_cuda_names_the_way_out(tiny_llm: Artifact) -> None:
    with pytest.raises(ValueError, match=r"needs a CUDA device.*use 'lora'"):
        new_teacher(tiny_llm, TEXT, SECTION.model_copy(update={"tuning": "qlora"}))


def test_unknown_llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TeacherError, match="neither an asset, a local folder nor reachable"):
        build_llm("nobody/nothing", Draft(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(TeacherError, match=r"needs config.json and .safetensors"):
        build_llm(str(tmp_path / "empty"), Draft(tmp_path))


def test_changed_llm_folder_is_noticed(tmp_path: Path) -> None:
    llm = make_llm(tmp_path, "llama")
    (tmp_path / "source" / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="has changed since"):
        load_body(llm)


def test_inspect_follows_an_llm_to_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llm = make_llm(tmp_path, "llama")
    assert main(["inspect", str(llm.path)]) == 0
    (tmp_path / "source" / "model.safetensors").rename(tmp_path / "elsewhere")
    distill.llm._verified.clear()
    assert main(["inspect", str(llm.path)]) == 2
    assert "is gone or has changed" in capsys.readouterr().err


def test_prompts() -> None:
    template = "{title} ({year}). {categories}. {text}"
    full = {"title": "Heat", "year": 1995, "categories": ["Crime", "Drama"], "text": "A film."}
    assert prompt_of(full, template) == "Heat (1995). Crime, Drama. A film"
    assert prompt_of({"title": "Heat", "year": None, "categories": None}, template) == "Heat"
    assert prompt_of({"title": "", "year": 1995}, template) == "(1995)"
    assert prompt_of({"title": ""}, template) == "unknown"


@pytest.mark.parametrize("whiten", [True, False])
def test_text_vectors(tiny_llm: Artifact, tmp_path: Path, whiten: bool) -> None:
    titles = [f"thing {i}" if i % 3 else f"thing {i} group {i} group {i} thing" for i in range(50)]
    section = TextSection(prompt="{title}", batch_size=4, student_dims=6, whiten=whiten)
    items = pl.DataFrame({"title": titles})
    artifact = make(
        tmp_path / "t", "item-text", recipe={}, inputs={}, build=lambda draft: build_text(tiny_llm, items, section, draft)
    )
    teacher_ID, student_IZ = load_text(artifact)
    assert teacher_ID.shape == (51, 64)
    assert student_IZ.shape == (51, 6)
    assert (teacher_ID[0] == 0).all()
    assert (student_IZ[0] == 0).all()
    covariance_ZZ = np.cov(student_IZ[1:].T, bias=True)
    spread_Z = np.diag(covariance_ZZ)
    assert spread_Z.mean() == pytest.approx(1, abs=0.01)
    assert np.allclose(covariance_ZZ - np.diag(spread_Z), 0, atol=1e-3)
    assert np.allclose(spread_Z, 1, atol=0.01) if whiten else spread_Z[0] > 2 > 1 > spread_Z[-1]
    alone = np.concatenate([encode(tiny_llm, [title], section) for title in titles[:5]])
    assert np.allclose(encode(tiny_llm, titles, section)[:5], alone, atol=2e-2)  # bf16 where the hardware has it


def test_whitening_does_not_raise_rounding(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    flat_ID = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 8)) + 1e-7 * rng.normal(size=(200, 8))  # of rank 3
    flat_ID = (flat_ID - flat_ID.mean(0)).astype(np.float32)
    spread_Z = (flat_ID @ _principal_components(flat_ID, 8, True)).std(axis=0)
    assert np.allclose(spread_Z[:3], 1, atol=0.01) and (spread_Z[3:] < 1e-3).all()


def test_interrupted_text_goes_on(tiny_llm: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = pl.DataFrame({"title": [f"thing {i}" for i in range(40)]})
    section = TextSection(prompt="{title}", batch_size=2, student_dims=4)
    encoded: list[int] = []

    def counted(*arguments: Any):
        for chunk in original(*arguments):
            if stop and len(encoded) == 1:
                raise KeyboardInterrupt
            encoded.append(len(chunk))
            yield chunk

    import distill.text

    original, stop = distill.text._encode_chunks, True
    monkeypatch.setattr(distill.text, "_encode_chunks", counted)

    def build(draft: Draft) -> None:
        build_text(tiny_llm, items, section, draft)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "t", "item-text", recipe={}, inputs={}, build=build)
    stop = False
    resumed = make(tmp_path / "t", "item-text", recipe={}, inputs={}, build=build)
    assert sum(encoded) == 40
    whole = make(tmp_path / "u", "item-text", recipe={}, inputs={}, build=build)
    assert resumed.manifest["files"] == whole.manifest["files"]


def test_targets_are_the_teachers_distribution(tiny_llm: Artifact, sequences: Sequences, tmp_path: Path) -> None:
    teacher = shaken(new_teacher(tiny_llm, TEXT, SECTION))
    section = TargetsSection(top_k=5, temperature=2.0)
    artifact = make(
        tmp_path / "t",
        "targets",
        recipe={},
        inputs={},
        build=lambda draft: build_targets(TeacherMember(teacher), sequences, section, draft),
    )
    targets = load_targets(artifact, sequences.num_items)
    windows = TrainingWindows(sequences, SECTION.max_length)
    batch = next(windows.overlapping(4))
    keep = batch.label_BL > 0
    table = teacher.table()
    with torch.no_grad():
        logits = teacher(torch.from_numpy(batch.history_BL), table)[torch.from_numpy(keep)] @ table[1:].T
    expected = (logits / 2).softmax(-1)
    got = targets.at(batch.position_BL[keep], torch.device("cpu"))
    assert torch.allclose(got.probability_NK, expected.topk(5).values, atol=1e-3)
    assert torch.allclose(expected.gather(-1, got.index_NK), got.probability_NK, atol=1e-3)
    assert torch.allclose(got.tail_N, 1 - expected.topk(5).values.sum(-1), atol=1e-3)
    whole = make(
        tmp_path / "w",
        "targets",
        recipe={},
        inputs={},
        build=lambda d: build_targets(TeacherMember(teacher), sequences, TargetsSection(), d),
    )
    assert load_targets(whole, sequences.num_items).at(batch.position_BL[keep], torch.device("cpu")).tail_N.max() < 1e-2


def test_members_are_averaged(tiny_llm: Artifact, sequences: Sequences, tmp_path: Path) -> None:
    """The targets of two are the product of their distributions, to the power of their weights."""
    torch.manual_seed(1)
    teacher = shaken(new_teacher(tiny_llm, TEXT, SECTION))
    student = shaken(Student(StudentSection(hidden_size=16, num_layers=1, max_length=20), sequences.num_items, None))
    section = TargetsSection(top_k=8, temperature=1.5)
    members = Ensemble([(3.0, TeacherMember(teacher)), (1.0, StudentMember(student))])

    def build(draft: Draft) -> None:
        build_targets(members, sequences, section, draft)

    targets = load_targets(make(tmp_path / "t", "targets", recipe={}, inputs={}, build=build), sequences.num_items)
    assert SECTION.max_length < 20  # the shorter of the two counts
    batch = next(TrainingWindows(sequences, SECTION.max_length).overlapping(4))
    keep, history = torch.from_numpy(batch.label_BL > 0), torch.from_numpy(batch.history_BL)
    with torch.no_grad():
        by_teacher = (teacher(history, teacher.table())[keep] @ teacher.table()[1:].T).softmax(-1)
        by_student = (student(history, student.items())[keep] @ student.items()[1:].T).softmax(-1)
    product = by_teacher ** (0.75 / 1.5) * by_student ** (0.25 / 1.5)
    expected = product / product.sum(-1, keepdim=True)
    got = targets.at(batch.position_BL[batch.label_BL > 0], torch.device("cpu"))
    assert torch.allclose(got.probability_NK, expected.topk(8).values, atol=1e-3)
    assert torch.allclose(expected.gather(-1, got.index_NK), got.probability_NK, atol=1e-3)


def test_targets_hold_the_states_of_the_first_member(tiny_llm: Artifact, sequences: Sequences, tmp_path: Path) -> None:
    torch.manual_seed(1)
    teacher = shaken(new_teacher(tiny_llm, TEXT, SECTION))
    student = shaken(Student(StudentSection(hidden_size=8, num_layers=2, max_length=12), sequences.num_items, None))
    names = ["hidden", "query", "key", "value"]
    batch = next(TrainingWindows(sequences, SECTION.max_length).overlapping(4))
    keep, history = torch.from_numpy(batch.label_BL > 0), torch.from_numpy(batch.history_BL)
    for number, first in enumerate((TeacherMember(teacher), StudentMember(student))):
        members = Ensemble([(1.0, first), (1.0, StudentMember(student))])

        def build(draft: Draft, members: Ensemble = members) -> None:
            build_targets(members, sequences, TargetsSection(), draft, names)

        made = make(tmp_path / str(number), "targets", recipe={}, inputs={}, build=build)
        held = load_targets(made, sequences.num_items).states_at(batch.position_BL[batch.label_BL > 0], torch.device("cpu"))
        expected = first.see(history, keep, names)[1]
        assert list(held) == names
        for name in names:
            torch.testing.assert_close(held[name], expected[name], atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        queries, keys, values = student.blocks[-1].project(  # type: ignore[operator]
            student.blocks[0](*student._positions(torch.nn.functional.embedding(history, student.items()), history != 0))
        )
    for name, state in (("query", queries), ("key", keys), ("value", values)):
        torch.testing.assert_close(held[name], state[keep], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("method", "max_bytes_ratio", "tolerance"), [("int8", 0.5, 0.05), ("nf4", 0.4, 0.3)])
def test_quantized_teacher(
    tiny_llm: Artifact, sequences: Sequences, tmp_path: Path, method: str, max_bytes_ratio: float, tolerance: float
) -> None:
    assert method in LLM_METHODS
    teacher = shaken(new_teacher(tiny_llm, TEXT, SECTION))
    recipe = {"teacher": SECTION.model_dump(mode="json")}
    saved = make(
        tmp_path / "t", "teacher", recipe=recipe, inputs={}, build=lambda draft: save_teacher(teacher, tiny_llm, draft)
    )
    small = make(
        tmp_path / "q",
        f"teacher-{method}",
        recipe=recipe,
        inputs={},
        build=lambda draft: build_quantized_llm(method, saved, sequences, draft),
    )
    body = "body/model.safetensors"
    assert small.manifest["files"][body]["bytes"] < max_bytes_ratio * saved.manifest["files"][body]["bytes"]
    loaded, history = load_teacher(small), torch.tensor([[1, 2, 3, 4]])
    assert loaded.num_parameters == teacher.num_parameters
    with torch.no_grad():
        table = teacher.table()
        exact, rough = teacher(history, table), loaded(history, table)
    assert torch.nn.functional.cosine_similarity(exact, rough, dim=-1).min() > 1 - tolerance
    assert not torch.equal(exact, rough)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "asks for code of its own"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000 is larger than"),
        ({"num_hidden_layers": 7}, "the weights lack what its config names"),
        ({"hidden_size": 128}, r"cannot be read|lack what its config names"),
        ({"quantization_config": {"quant_method": "gptq"}}, "is quantized by gptq"),
        ({"model_type": "nothing"}, "cannot be read"),
    ],
)
def test_a_forged_config_is_refused(tiny_llm: Artifact, tmp_path: Path, change: dict, message: str) -> None:
    """Digests recomputed, so that only the content can give it away."""
    teacher = new_teacher(tiny_llm, TEXT, SECTION)
    recipe = {"teacher": SECTION.model_dump(mode="json")}
    artifact = make(tmp_path / "t", "teacher", recipe=recipe, inputs={}, build=lambda d: save_teacher(teacher, tiny_llm, d))
    path = artifact.path / "body" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    forge(artifact.path)
    with pytest.raises(ArtifactError, match=message):
        load_teacher(load(artifact.path))


def test_a_tokenizer_with_code_of_its_own_is_refused(tiny_llm: Artifact, tmp_path: Path) -> None:
    """A local model folder: the code would be imported from it."""
    folder = write_tiny_llm(tmp_path / "llm")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    llm = make(tmp_path / "a", "llm", recipe={}, inputs={}, build=lambda draft: build_llm(str(folder), draft))
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_tokenizer(llm)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("name", "value"), [("model_max_length", {}), ("model_max_length", "x"), ("tokenizer_class", 5)])
def test_a_tokenizer_that_cannot_work_is_refused(tmp_path: Path, name: str, value: object) -> None:
    folder = write_tiny_llm(tmp_path / "llm")
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {name: value}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    llm = make(tmp_path / "a", "llm", recipe={}, inputs={}, build=lambda draft: build_llm(str(folder), draft))
    with pytest.raises(ArtifactError, match="cannot be read as 'llm'"):
        load_tokenizer(llm)


def test_forged_targets_are_refused(tiny_llm: Artifact, sequences: Sequences, tmp_path: Path) -> None:
    teacher = new_teacher(tiny_llm, TEXT, SECTION)
    section = TargetsSection(top_k=5)
    artifact = make(
        tmp_path / "t",
        "targets",
        recipe={},
        inputs={},
        build=lambda d: build_targets(TeacherMember(teacher), sequences, section, d, ["hidden"]),
    )
    shard = next(artifact.path.glob("shard-*.safetensors"))
    good = load_file(shard)
    changes = {"index": good["index"] + 60, "probability": good["probability"] * 30, "position": good["position"] + 1}
    changes |= {"hidden": good["hidden"][:-1]}
    for name, value in changes.items():
        save_file(good | {name: value.astype(good[name].dtype)}, shard)
        forge(artifact.path)
        with pytest.raises(ArtifactError, match="cannot be read as 'targets'"):
            load_targets(load(artifact.path), sequences.num_items)
    save_file({name: part for name, part in good.items() if name != "hidden"}, shard)
    forge(artifact.path)
    with pytest.raises(ArtifactError, match="cannot be read as 'targets'"):
        load_targets(load(artifact.path), sequences.num_items).states["hidden"]


def test_shards_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    """What one lacks, or has too little of, must not be what memory happened to hold."""

    def whole(start: int, stop: int) -> dict[str, np.ndarray]:
        return {"position": np.arange(start, stop), "hidden": np.ones((stop - start, 2), np.float16)}

    def joined(second: dict[str, np.ndarray], num_positions: int = 5) -> dict[str, np.ndarray]:
        for number, shard in enumerate((whole(1, 4), second)):
            save_file(shard, tmp_path / f"{number}.safetensors")
        return _joined([tmp_path / f"{number}.safetensors" for number in (0, 1)], num_positions)

    good = whole(4, 6)
    assert joined(good)["position"].tolist() == [1, 2, 3, 4, 5] and (joined(good)["hidden"] == 1).all()
    bad = {
        "lacking": {"position": good["position"]},
        "short": good | {"hidden": good["hidden"][:1]},
        "other": good | {"hidden": good["hidden"].astype(np.float32)},
        "more": good | {"query": good["hidden"]},
    }
    for second in bad.values():
        with pytest.raises((ValueError, KeyError)):
            joined(second)
    for num_positions in (4, 6):
        with pytest.raises(ValueError, match=r"where the other shards end|every training position once"):
            joined(good, num_positions)


def test_a_gap_among_encoded_chunks_is_encoded_again(
    tiny_llm: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.text._CHUNK_BATCHES", 1)
    section, prompts = TextSection(batch_size=2), [f"thing {n}" for n in range(7)]
    whole = _encode_resumably(tiny_llm, prompts, section, tmp_path)
    chunks = sorted(tmp_path.glob("chunk-*"))
    assert len(chunks) == 4
    chunks[1].unlink()
    assert np.allclose(_encode_resumably(tiny_llm, prompts, section, tmp_path), whole, atol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite_win_nothing(sequences: Sequences, value: float) -> None:
    validator = Validator(sequences, 12, OptimSection(), torch.device("cpu"))
    broken = torch.ones(sequences.num_items + 1, 4)
    broken[-1, -1] = value
    with pytest.raises(ValueError, match="scores are not finite"):
        validator(lambda history_BL: torch.ones(len(history_BL), 4), broken)


@pytest.mark.parametrize("num_values", [1, 3, 1000])
def test_ranks_count_what_is_higher_and_ties_before(num_values: int) -> None:
    score_BI = torch.randint(num_values, (40, 9), generator=torch.Generator().manual_seed(0)).float()
    score_BI[:, 0] = -torch.inf
    target_B = torch.arange(40) % 8 + 1
    ordered = [sorted(range(9), key=lambda i: -row[i]) for row in score_BI.tolist()]  # stable: ties to the lower index
    expected = [order.index(target) + 1 for order, target in zip(ordered, target_B.tolist(), strict=True)]
    assert rank_of(score_BI, target_B).tolist() == expected
