"""The ablation's variants: each is a recipe, and none is another one's."""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

from distill.objectives.config import OPTIONS as OBJECTIVES
from distill.regularisers.config import OPTIONS as REGULARISERS
from tests.constructed import write_chain_dataset
from tools import ablation


def test_every_variant_is_a_recipe_of_its_own(tmp_path: Path) -> None:
    found, data = {}, write_chain_dataset(tmp_path / "chain")
    arguments = argparse.Namespace(recipe=Path("recipes/amazon18-games.toml"), set=[], runs=tmp_path)
    for name, variant in ablation.VARIANTS.items():
        recipe = ablation._pipeline(arguments, data, "x", variant.keys).recipe
        found[name] = (variant.arm, recipe.model_dump_json())
    own = {value for name, value in found.items() if name not in (ablation.BASE, "label weight 0.2")}  # the recipe's own weight
    assert len(own) == len(found) - 2
    named = " ".join(found)
    assert all(method in named for method in (*OBJECTIVES, *REGULARISERS))


def test_the_sample_is_fixed(tmp_path: Path) -> None:
    data = write_chain_dataset(tmp_path / "chain")
    one, two = (ablation._sampled(data, 30, tmp_path / name) for name in ("a", "b"))
    interactions = pl.read_parquet(one / "interactions.parquet")
    assert interactions["user_id"].n_unique() == 30 and interactions.height == 30 * 12
    assert interactions.equals(pl.read_parquet(two / "interactions.parquet"))
