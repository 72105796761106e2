"""The ablation: its variants are recipes, none another one's; it makes them from one chain, and goes on where it was ended."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import polars as pl
import pytest

from distill.objectives.config import OPTIONS as OBJECTIVES
from distill.regularisers.config import OPTIONS as REGULARISERS
from tests.constructed import write_chain_dataset, write_tiny_llm
from tools import ablation


def test_every_variant_is_a_recipe_of_its_own(tmp_path: Path) -> None:
    found = {}
    arguments = argparse.Namespace(recipe=Path("recipes/amazon18-games.toml"), set=[])
    for name, variant in ablation.VARIANTS.items():
        recipe = ablation._pipeline(arguments, tmp_path, "x", variant.keys).recipe
        found[name] = (variant.arm, recipe.model_dump_json())
    assert found.pop("label weight 0.2") == found[ablation.BASE], "which is the recipe's own weight"
    assert len(set(found.values())) == len(found)
    named = " ".join(found)
    assert all(method in named for method in (*OBJECTIVES, *REGULARISERS))


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


def test_it_goes_on_where_it_was_ended(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, llm = write_chain_dataset(tmp_path / "chain", num_users=60), write_tiny_llm(tmp_path / "tiny-llm")
    out = tmp_path / "ledger.json"
    words = ["--recipe", "recipes/smoke.toml", "--data", str(data), "--users", "50", "--runs", str(tmp_path / "runs")]
    words += ["--out", str(out), "--jobs", "2", "--set", f"teacher.llm={llm}", "--set", "num_threads=1"]
    words += ["--set", "teacher.optim.epochs=1", "--set", "student.optim.epochs=1"]
    names = ["control-id", "taught by control-text", "taught by a reader of texts"]
    ablation.main([*words, "--only", *names])
    told = capfd.readouterr().err
    assert told.count("making") == told.count("made")
    made = [Path(line.split()[2]) for line in told.splitlines() if line.startswith("[recdistill] made")]
    assert len([path for path in made if path.name == "data" or path.parent.name == "llm"]) == 2, "shared, they are made once"
    found = json.loads(out.read_text())
    assert set(found["rows"]) == {*names, "teacher reads texts"} and found["users"] == 50
    control = found["rows"]["control-id"]
    assert 0 < control["test"]["ndcg_at_10"] <= 1 and control["arm"] == "control-id" and not control["changes"]

    runs = next((tmp_path / "runs").iterdir())
    assert (runs / "base" / "text" / "manifest.json").samefile(runs / "taught-by-control-text" / "text" / "manifest.json")
    assert (runs / "teacher-reads-texts" / "seed-0" / "teacher" / "manifest.json").samefile(
        runs / "taught-by-a-reader-of-texts" / "seed-0" / "teacher" / "manifest.json"
    )

    ablation.main([*words, "--only", "control-id", "taught by control-text"])
    assert "making" not in capfd.readouterr().err and json.loads(out.read_text())["rows"].keys() == found["rows"].keys()

    with pytest.raises(SystemExit, match="rows of another recipe"):
        ablation.main([*words, "--only", "control-id", "--set", "student.dropout=0.3"])
    assert json.loads(out.read_text())["rows"].keys() == found["rows"].keys()
