"""The LLM tuned as item encoder: its loss, what it reads, what it keeps, and who learns from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F

from distill.config import ItemEncoderSection, TextSection
from distill.evaluation import kept_history
from distill.item_encoder import ItemEncoder, build_item_encoder, freeze, inclusion, sampled_softmax
from distill.llm import TeacherError, load_body, load_tokenizer
from distill.pooling import load_pooled_body, pooled
from distill.text import build_text, encode, load_text, prompts_of
from distill.tracking import Tracker
from distill.train_student import build_student
from foundation.artifact import Artifact, Draft, load, make
from foundation.recipe import RecipeError, load_recipe
from recdistill.cli import main
from recdistill.recipe import Recipe
from recommender.config import OptimSection, StudentSection
from recommender.data import load_dataset
from recommender.split import Sequences
from recommender.student import load_student
from tests.conftest import make_llm
from tests.constructed import write_chain_dataset, write_tiny_llm

OPTIM = OptimSection(learning_rate=5e-3, batch_size=32, epochs=2, patience=9)
STUDENT = StudentSection(hidden_size=32, num_layers=1, max_length=12, dropout=0.1, optim=OPTIM)
SECTION = ItemEncoderSection(frozen_layers=1, body_learning_rate=1e-3, optim=OPTIM)
TEXT = TextSection(layers=[1, 2], student_dims=16, max_tokens=9, whiten=True)


@pytest.fixture(autouse=True, scope="module")
def in_float() -> Iterator[None]:
    """Where "auto" would round to bf16, vectors of two ways to compute them differ by that."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("text", "item_encoder"):
            patch.setattr(f"distill.{module}.compute_dtype", lambda _: torch.float32)
        yield


# --- the loss


def test_over_the_whole_catalogue_it_is_cross_entropy() -> None:
    hidden, table, label = torch.randn(5, 4), torch.randn(9, 4), torch.tensor([0, 8, 3, 3, 1])
    assert torch.allclose(sampled_softmax(hidden, table, label, torch.zeros(9)), F.cross_entropy(hidden @ table.T, label))


def test_the_sum_over_a_drawn_catalogue_is_unbiased() -> None:
    """e^loss times the label's own weight is the estimated sum; over many draws it is the true one."""
    torch.manual_seed(0)
    hidden, table, q = torch.randn(1, 4), torch.randn(20, 4), torch.rand(20) * 0.8 + 0.1
    truth = (hidden @ table.T).exp().sum()
    sums = []
    for _ in range(4000):
        drawn = (torch.rand(20) < q).index_fill(0, torch.tensor([7]), True)
        label = drawn[:7].sum().reshape(1)
        loss = sampled_softmax(hidden, table[drawn], label, q[drawn].log())
        sums.append((loss + (hidden @ table[7])[0]).exp())
    sums = torch.stack(sums)
    assert abs(sums.mean() - truth) < 4 * sums.std() / len(sums) ** 0.5


def test_chances_to_be_in_a_batch() -> None:
    count = np.array([0, 50, 30, 15, 5])
    draws = np.random.default_rng(0).choice(5, (20_000, 12), p=count / count.sum())
    assert np.allclose([(draws == item).any(axis=1).mean() for item in range(5)], inclusion(count, 12), atol=0.01)


# --- what it reads


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "bert"])
@torch.no_grad()
def test_layers_side_by_side(architecture: str, tmp_path: Path) -> None:
    """What a body says after its first layer is what a body of one layer says; padding is not seen, masked or not."""
    llm = make_llm(tmp_path, architecture)
    tokens = load_tokenizer(llm)(["thing 1", "thing 12 group ( 3 )"], padding=True, return_tensors="pt")
    both = pooled(load_pooled_body(llm, [1, 2]), [1, 2], tokens["input_ids"], tokens["attention_mask"])
    assert both.shape == (2, 128)
    for layer, part in zip((1, 2), both.chunk(2, dim=-1), strict=True):
        alone = pooled(load_pooled_body(llm, [layer]), [layer], tokens["input_ids"], tokens["attention_mask"])
        assert torch.allclose(part, alone, atol=1e-5)
    body = load_pooled_body(llm, [1, -1])
    assert torch.allclose(both, pooled(body, [1, -1], tokens["input_ids"], tokens["attention_mask"], pad_mask=False), atol=1e-5)
    with pytest.raises(ValueError, match=r"text\.layers = \[1, 3\] names 3, but the LLM has 2"):
        load_pooled_body(llm, [1, 3])


@torch.no_grad()
def test_every_item_gets_its_own_vector(tiny_llm: Artifact) -> None:
    """Texts of mixed lengths, an empty one among them, pass through the LLM by length; the answer is in the order asked for."""
    texts = ["thing 1 group ( 3 )", "thing", "thing 12 , 4", "", "group 5"]
    tokens = load_tokenizer(tiny_llm)(texts)["input_ids"]
    encoder = ItemEncoder(load_pooled_body(tiny_llm, [1, 2]), [1, 2], tokens, torch.float32)
    rows = np.array([3, 1, 5, 2, 4])
    assert torch.allclose(encoder(rows), torch.cat([encoder(rows[n : n + 1]) for n in range(5)]), atol=1e-5)
    assert torch.allclose(encoder.all_items()[1:], encoder(np.arange(1, 6)), atol=1e-5) and encoder.all_items()[0].eq(0).all()


def test_frozen_layers(tiny_llm: Artifact) -> None:
    body = load_body(tiny_llm)
    freeze(body, 1)
    assert {tuple(name.split(".")[:2]) for name, p in body.named_parameters() if p.requires_grad} == {("layers", "1")}
    with pytest.raises(TeacherError, match="leaves none of the 2 layers"):
        freeze(body, 2)


@pytest.mark.parametrize("layers", ["[8]", "[4, 8]"])
def test_a_recipe_that_freezes_all_that_is_read_is_refused(layers: str) -> None:
    keys = [f"text.layers={layers}", "item_encoder.frozen_layers=8", "name=x"]
    with pytest.raises(RecipeError, match=r"frozen_layers = 8 leaves no layer to tune of those that text\.layers = .* read"):
        load_recipe(Recipe, Path("recipes/smoke.toml"), keys)
    load_recipe(Recipe, Path("recipes/smoke.toml"), [*keys, "text.layers=[8, -1]"])


def test_states_in_between_need_a_norm_of_a_known_name(tiny_llm: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.pooling._FINAL_NORMS", ("another_norm",))
    load_pooled_body(tiny_llm, [1])
    with pytest.raises(TeacherError, match="LlamaModel has no final norm named another_norm for the states in between"):
        load_pooled_body(tiny_llm, [1, 2])


def test_a_body_that_looks_ahead_is_refused(
    dataset: Artifact, sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its texts are padded without a mask."""
    monkeypatch.setattr("distill.llm.causal_config", lambda config, _: config)
    with pytest.raises(TeacherError, match="does not read left to right"):
        tuned(tmp_path, make_llm(tmp_path, "bert"), dataset, sequences, init="random")


# --- the stage


class Interrupted(Exception):
    """Training was stopped here."""


class StopAt(Tracker):
    def __init__(self, step: int) -> None:
        self.step = step

    def log(self, step: int, values: object) -> None:
        if step >= self.step:
            raise Interrupted


def tuned(
    out: Path, llm: Artifact, dataset: Artifact, sequences: Sequences, tracker: Tracker | None = None, **keys: object
) -> Artifact:
    section = ItemEncoderSection.model_validate({**SECTION.model_dump(), **keys})
    items = load_dataset(dataset).items
    prompts, recipe = prompts_of(items, TEXT), {"text": TEXT.model_dump(mode="json")}
    control = None
    if section.init == "control-text":
        text = make(
            out / "text", "item-text", recipe=recipe, inputs={}, build=lambda draft: build_text(llm, items, TEXT, draft)
        )

        def arm(draft: Draft) -> None:
            build_student("control-text", sequences, STUDENT, 0, draft, text_IZ=load_text(text)[1])

        architecture = {"student": STUDENT.model_dump(mode="json")}
        control = make(out / "control", "control-text", recipe=architecture, inputs={}, build=arm), text

    def build(draft: Draft) -> None:
        build_item_encoder(llm, prompts, sequences, section, TEXT, STUDENT, 0, draft, control, tracker)

    return make(
        out / "encoder", "item-encoder", recipe=recipe | {"student": STUDENT.model_dump(mode="json")}, inputs={}, build=build
    )


@pytest.fixture(scope="module")
def two_llms(
    tiny_llm: Artifact, dataset: Artifact, sequences: Sequences, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Artifact, Artifact]:
    return tiny_llm, tuned(tmp_path_factory.mktemp("tuned"), tiny_llm, dataset, sequences)


def test_untrained_it_is_control_text(tiny_llm: Artifact, dataset: Artifact, sequences: Sequences, tmp_path: Path) -> None:
    still = OPTIM.model_copy(update={"learning_rate": 1e-12, "epochs": 1}).model_dump()
    encoder = tuned(tmp_path, tiny_llm, dataset, sequences, ids=True, body_learning_rate=1e-12, optim=still)
    control = load(tmp_path / "control").metrics["validation"]["ndcg_at_10"]
    assert encoder.metrics["validation"]["ndcg_at_10"] == pytest.approx(control, abs=0.005)


def test_it_learns(two_llms: tuple[Artifact, Artifact]) -> None:
    control, encoder = load(two_llms[1].path.parent / "control"), two_llms[1]
    curve = [epoch["validation_ndcg_at_10"] for epoch in kept_history(encoder)]
    assert max(curve) > control.metrics["validation"]["ndcg_at_10"] - 0.02 and max(curve) > 0.75
    student = load_student(encoder)
    assert not student.items.id_ID[1:].any(), "items are known by their text alone"


def test_what_comes_out_is_an_llm(two_llms: tuple[Artifact, Artifact], dataset: Artifact) -> None:
    """Its frozen layers are the LLM's, and the vectors it gives are those its recommender was trained on."""
    llm, encoder = two_llms
    before, after = load_body(llm), load_body(encoder)
    assert torch.equal(before.layers[0].mlp.up_proj.weight, after.layers[0].mlp.up_proj.weight)
    assert not torch.allclose(before.layers[1].mlp.up_proj.weight, after.layers[1].mlp.up_proj.weight, atol=1e-4)
    prompts = prompts_of(load_dataset(dataset).items, TEXT)
    old, new = (encode(who, prompts, TEXT) for who in (llm, encoder))
    assert np.allclose(old[:, :64], new[:, :64], atol=1e-5) and not np.allclose(old[:, 64:], new[:, 64:], atol=0.01)
    std = old.std(axis=0) + 1e-3 * np.abs(old).mean() + 1e-6
    read = load_student(encoder).items.text_IZ[1:].numpy()
    assert np.allclose((new - old.mean(axis=0)) / std, read, atol=1e-3)


def test_from_scratch_with_ids(tiny_llm: Artifact, dataset: Artifact, sequences: Sequences, tmp_path: Path) -> None:
    encoder = tuned(tmp_path, tiny_llm, dataset, sequences, ids=True, init="random")
    assert load_student(encoder).items.id_ID[1:].any()


def test_resumed_equals_uninterrupted(
    two_llms: tuple[Artifact, Artifact],
    dataset: Artifact,
    sequences: Sequences,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A checkpoint is written after every step here; step 20, of the second epoch, is interrupted before it is."""
    often = OPTIM.model_copy(update={"checkpoint_every_s": 1e-9}).model_dump()
    with pytest.raises(Interrupted):
        tuned(tmp_path, two_llms[0], dataset, sequences, StopAt(20), optim=often)
    again = tuned(tmp_path, two_llms[0], dataset, sequences, optim=often)
    assert "going on from epoch 2, step 19" in capfd.readouterr().err
    files = {name: file["sha256"] for name, file in two_llms[1].manifest["files"].items() if name.endswith(".safetensors")}
    assert len(files) == 2 and files == {name: again.manifest["files"][name]["sha256"] for name in files}


# --- who learns from it


def test_the_chain_with_an_item_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Student, teacher and control-tuned read the tuned vectors, control-text does not; new items are encoded so as well."""
    data, llm = write_chain_dataset(tmp_path / "chain", num_users=80), write_tiny_llm(tmp_path / "tiny-llm")
    options = ["--recipe", "recipes/smoke.toml", "--data", str(data), "--teacher", str(llm), "--runs", str(tmp_path / "runs")]
    keys = ["item_encoder.optim.epochs=1", "item_encoder.frozen_layers=1", "text.layers=[1, 2]", "text.student_dims=24"]
    keys += ["teacher.item_init=control-tuned", "teacher.optim.epochs=1", "student.optim.epochs=1"]
    keys += ["targets.members={teacher = 1.0, control-tuned = 1.0, item-encoder = 0.5}"]
    options += [word for key in keys for word in ("--set", key)]
    assert main(["distill", *options]) == 0
    table = capsys.readouterr().out
    assert {"control-tuned", "item-encoder", "student over control-tuned"} <= {
        line.split(":")[0].strip() for line in table.splitlines()
    } | set(table.split())
    seed = tmp_path / "runs" / "chain" / "seed-0"
    digest = {name: load(seed / name).digest for name in ("item-encoder", "text-tuned", "control-tuned", "teacher")}
    assert load(seed / "text-tuned").manifest["inputs"]["llm"] == digest["item-encoder"]
    for arm in ("student", "control-tuned", "teacher"):
        assert load(seed / arm).manifest["inputs"]["text"] == digest["text-tuned"]
    assert load(seed / "control-text").manifest["inputs"]["text"] == load(seed.parent / "text").digest
    assert load(seed / "teacher").manifest["inputs"]["control-tuned"] == digest["control-tuned"]
    taught_by = load(seed / "targets").manifest["inputs"]
    assert {f"{who}-0" for who in ("teacher", "control-tuned", "item-encoder")} < set(taught_by)

    pl.DataFrame({"item_id": ["n1"], "title": ["thing 12"]}).write_parquet(tmp_path / "new.parquet")
    assert main(["export", "append", str(tmp_path / "new.parquet"), str(tmp_path / "v2"), *options]) == 0
    assert load(tmp_path / "v2").manifest["inputs"]["llm"] == digest["item-encoder"]
    assert main(["export", "text-encoder", *options]) == 0
    assert load(seed.parent / "text-encoder").manifest["inputs"]["text"] == digest["text-tuned"]
