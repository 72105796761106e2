"""Options of every objective, checked when the recipe is read; light, so that reading a recipe imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from foundation.recipe import Section


class ObjectiveOptions(Section):
    """What every objective has."""

    weight: float = Field(default=1.0, ge=0, description="factor of its loss; 0 = left out")


class RrdOptions(ObjectiveOptions):
    """Of `rrd`."""

    weight: float = Field(
        default=0.05, ge=0, description="factor of its loss, a sum over `num_interesting` items; 0 = left out"
    )
    num_interesting: int = Field(default=20, ge=1, description="items drawn from the teacher's stored list, at most all of it")
    num_uninteresting: int = Field(default=100, ge=1, description="items drawn from the rest of the catalogue")
    rank_temperature: float = Field(default=20.0, gt=0, description="an item of rank r is drawn with weight e^(-r / this)")


class Dllm2RecOptions(ObjectiveOptions):
    """Of `dllm2rec`."""

    num_listed: int = Field(default=20, ge=1, description="first items of the teacher's stored list, at most all of it")
    position: float = Field(default=0.3, ge=0, description="weight of the list by rank")
    confidence: float = Field(default=0.5, ge=0, description="weight of the list by the teacher's probability")
    consistency: float = Field(default=0.1, ge=0, description="weight of each item that both rank high")
    rank_temperature: float = Field(default=10.0, gt=0, description="rank r weighs e^(-r / this)")
    confidence_temperature: float = Field(default=1.0, gt=0, description="probability p weighs p^(1 / this)")
    num_consistent: int = Field(default=20, ge=1, description="the student's own first items")

    @model_validator(mode="after")
    def _weighs_something(self) -> Dllm2RecOptions:
        if not self.position + self.confidence:
            raise ValueError(
                "position and confidence cannot both be 0: where the two agree on nothing, no weight would be left"
            )
        return self


class RceKdOptions(ObjectiveOptions):
    """Of `rce_kd`."""

    num_top: int = Field(default=20, ge=1, description="first items of teacher and student, at most the stored list")
    num_candidates: int = Field(default=100, ge=1, description="first items of the student that are drawn from")
    num_drawn: int = Field(default=50, ge=1, description="so many of them")
    overlap_weight: float = Field(default=1.0, gt=0, description="beta: how fast agreement shifts weight to Qs")


class HiddenOptions(ObjectiveOptions):
    """Of `hidden`."""

    cosine: float = Field(default=1.0, ge=0, description="weight of 1 - cosine")
    squared: float = Field(default=0.0, ge=0, description="weight of the squared distance, a mean over dimensions")

    @model_validator(mode="after")
    def _weighs_something(self) -> HiddenOptions:
        if not self.cosine + self.squared:
            raise ValueError("cosine and squared cannot both be 0")
        return self


class MiniLmOptions(ObjectiveOptions):
    """Of `minilm`."""

    relation_heads: int = Field(default=2, ge=1, le=64, description="parts that queries, keys and values are cut into")


OPTIONS: dict[str, type[ObjectiveOptions]] = {
    "forward_kl": ObjectiveOptions,
    "rrd": RrdOptions,
    "dllm2rec": Dllm2RecOptions,
    "rce_kd": RceKdOptions,
    "hidden": HiddenOptions,
    "minilm": MiniLmOptions,
}
# What an objective reads of the teacher beside its distribution, at every position.
STATES: dict[str, tuple[str, ...]] = {"hidden": ("hidden",), "minilm": ("query", "key", "value")}


def weights_of(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The weight of each of a recipe's objectives."""
    return {name: OPTIONS[name].model_validate(options).weight for name, options in sections.items()}


def states_needed(sections: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the targets of a recipe's objectives must hold beside distributions."""
    weights = weights_of(sections)
    return [state for name, states in STATES.items() if weights.get(name) for state in states]
