"""The ablation: its variants are recipes, none another one's; it makes them from one chain, and goes on where it was ended."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from distill.objectives.config import OPTIONS as OBJECTIVES
from distill.regularisers.config import OPTIONS as REGULARISERS
from foundation.artifact import load
from tests.constructed import write_chain_dataset, write_tiny_llm
from tools import ablation


def test_every_variant_is_a_recipe_of_its_own(tmp_path: Path) -> None:
    found = {}
    arguments = argparse.Namespace(recipe=Path("recipes/amazon18-games.toml"), set=[])
    for name, variant in ablation.VARIANTS.items():
        recipe = ablation._pipeline(arguments, tmp_path, "x", variant.keys).recipe
        found[name] = (variant.arm, recipe.model_dump_json())
    base = found[ablation.OBJECTIVE][1]
    own = {name for name, (_, recipe) in found.items() if recipe == base}  # what the recipe has already
    assert {"control-id", "control-text", "teacher", ablation.OBJECTIVE, "label weight 0.2"} <= own and len(own) < 9
    for name in ("taught by a reader of texts", "tuned vectors, taught", "taught by the teacher"):
        assert "teacher" in json.loads(found[name][1])["targets"]["members"], name
    others = [variant for name, variant in found.items() if name not in own]
    assert len(set(others)) == len(others) > 30
    named = " ".join(found)
    assert all(method in named for method in (*OBJECTIVES, *REGULARISERS))


def test_a_linear_model_weighs_what_it_weighs_in_the_recipe(tmp_path: Path) -> None:
    keys = ablation.VARIANTS["taught by control-text and ease-text"].keys
    for given, expected in (([], 50.0), (["targets.members={teacher = 1.0, ease = 7.0}"], 7.0)):
        arguments = argparse.Namespace(recipe=Path("recipes/smoke.toml"), set=given)
        members = ablation._pipeline(arguments, tmp_path, "x", keys).recipe.targets.members
        assert members["ease-text"] == expected and members["control-text"] == 1.0


def test_a_variant_starts_at_one_that_it_differs_little_from() -> None:
    for variant in ablation.VARIANTS.values():
        if variant.start:
            start = ablation.VARIANTS[variant.start]
            assert not start.start and set(start.keys) <= set(variant.keys)


def test_the_sample_is_fixed(tmp_path: Path) -> None:
    data = write_chain_dataset(tmp_path / "chain")
    for name in ("a", "b"):
        ablation._draw(data, 30, tmp_path / name)
    one, two = (pl.read_parquet(tmp_path / name / "interactions.parquet") for name in ("a", "b"))
    assert one["user_id"].n_unique() == 30 and one.height == 30 * 12
    assert one.equals(two)


def test_it_goes_on_where_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, llm = write_chain_dataset(tmp_path / "chain", num_users=60), write_tiny_llm(tmp_path / "tiny-llm")
    out = tmp_path / "ledger.json"
    words = ["--recipe", "recipes/smoke.toml", "--data", str(data), "--users", "50", "--runs", str(tmp_path / "runs")]
    words += ["--out", str(out), "--jobs", "2"]
    for key in (f"teacher.llm={llm}", "num_threads=1", "teacher.optim.epochs=1", "student.optim.epochs=1"):
        words += ["--set", key]

    seen = set[int]()  # files, of which linked ones are one

    def made() -> list[str]:
        """What was made since, as FOLDER/ARTEFACT of one seed."""
        there = [path for path in runs.rglob("manifest.json") if not any(part.startswith(".") for part in path.parts)]
        fresh = {
            path.stat().st_ino: path.parent.relative_to(runs) for path in sorted(there, key=lambda path: "chain" in path.parts)
        }
        fresh = {number: path for number, path in fresh.items() if number not in seen}
        seen.update(fresh)
        return sorted("/".join(part for part in path.parts if part != "seed-0") for path in fresh.values())

    ablation.main([*words, "--only", "control-id"])
    runs = next((tmp_path / "runs").iterdir())
    shared = ["chain/control-text", "chain/data", "chain/targets", "chain/teacher", "chain/text"]
    own = [name for name in made() if not name.startswith("llm/")]
    assert own == [*shared, "control-id/control-id"], "of the chain no more than variants share"
    first = json.loads(out.read_text())["rows"]["control-id"]
    assert 0 < first["test"]["ndcg_at_10"] <= 1 and first["arm"] == "control-id" and not first["changes"]

    foreign = runs / "taught-by-a-reader-of-texts" / "seed-0" / "student"  # in the way of one variant
    foreign.mkdir(parents=True)
    (runs / ".taught-by-control-text.partial" / "cut").mkdir(parents=True)  # a copy that was cut
    monkeypatch.setattr(ablation, "environment", lambda _: {"cpu": "another machine", "gpu": None})
    names = ["control-id", "taught by control-text", "taught by a reader of texts"]
    with pytest.raises(SystemExit, match="is there and is no artefact"):
        ablation.main([*words, "--only", *names])
    rows = json.loads(out.read_text())["rows"]
    assert "teacher reads texts" in rows and "taught by a reader of texts" not in rows

    shutil.rmtree(foreign.parent.parent)
    assert "teacher-reads-texts/teacher" in made()
    ablation.main([*words, "--only", *names])
    assert not [name for name in made() if name.startswith("teacher-reads-texts") or name == "control-id/control-id"]
    rows = json.loads(out.read_text())["rows"]
    assert set(rows) == {*names, "teacher reads texts"}
    assert rows["control-id"] == first, "neither made nor dated anew"
    assert rows["taught by control-text"]["hardware"].startswith("another machine")
    same = [
        ("chain/text", "taught-by-control-text/text"),
        ("teacher-reads-texts/seed-0/teacher", "taught-by-a-reader-of-texts/seed-0/teacher"),
    ]
    assert all((runs / one / "manifest.json").samefile(runs / other / "manifest.json") for one, other in same)
    assert not (runs / "taught-by-control-text" / "cut").exists()

    keys = [words[n + 1] for n, word in enumerate(words) if word == "--set"]
    made_twice = json.loads(out.read_text())
    made_twice["rows"]["control-id"]["control"] = ["another"]
    out.write_text(json.dumps(made_twice))
    with pytest.raises(SystemExit, match="another control-text"):
        ablation.main([*words, "--only", "control-id"])
    asked = {"recipe": Path(words[1]), "data": data, "users": 50, "out": out, "runs": runs.parent}
    ablation.Ledger(argparse.Namespace(**asked, set=[*keys, "benchmark.rounds=2"]))  # which shapes no row, and is not refused
    with pytest.raises(ValueError, match="rows of another recipe"):
        ablation.Ledger(argparse.Namespace(**asked, set=[*keys, "student.dropout=0.3"]))


def test_a_row_of_several_seeds_is_their_mean(tmp_path: Path) -> None:
    data, llm = write_chain_dataset(tmp_path / "chain", num_users=60), write_tiny_llm(tmp_path / "tiny-llm")
    out, runs = tmp_path / "ledger.json", tmp_path / "runs"
    words = ["--recipe", "recipes/smoke.toml", "--data", str(data), "--users", "50", "--runs", str(runs), "--out", str(out)]
    for key in (f"teacher.llm={llm}", "num_threads=1", "teacher.optim.epochs=1", "student.optim.epochs=1", "seeds=[0,1]"):
        words += ["--set", key]
    ablation.main([*words, "--jobs", "2", "--only", "taught by a reader of texts", ablation.OBJECTIVE])
    rows = json.loads(out.read_text())["rows"]
    assert set(rows) == {"teacher reads texts", "taught by a reader of texts", ablation.OBJECTIVE}
    for name, row in rows.items():
        folders = [next(runs.glob(f"*/{name.replace(' ', '-')}/seed-{seed}/{row['arm']}")) for seed in (0, 1)]
        arms = [load(folder) for folder in folders]
        assert row["artifact"] == [arm.digest for arm in arms] and len(row["control"]) == 2
        assert arms[0].digest != arms[1].digest
        for part in ("validation", "test"):
            assert row[part]["ndcg_at_10"] == pytest.approx(np.mean([arm.metrics[part]["ndcg_at_10"] for arm in arms]))
            if name == ablation.OBJECTIVE:
                assert "over_forward_kl" not in row[part]
            else:
                other = rows[ablation.OBJECTIVE][part]["ndcg_at_10"]
                assert row[part]["over_forward_kl"]["relative"] == pytest.approx(row[part]["ndcg_at_10"] / other - 1)
    for start in runs.glob("*/teacher-reads-texts/seed-*/teacher/manifest.json"):
        seed = start.parts[-3]
        assert start.samefile(next(runs.glob(f"*/taught-by-a-reader-of-texts/{seed}/teacher/manifest.json")))


def test_more_users_than_there_are_is_refused(tmp_path: Path) -> None:
    data = write_chain_dataset(tmp_path / "chain", num_users=60)
    with pytest.raises(ValueError, match=r"--users 61: .* has 60"):
        ablation._draw(data, 61, tmp_path / "out")
