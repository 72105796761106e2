"""Options of every objective, checked when the recipe is read; light, so that reading a recipe imports no torch."""

from __future__ import annotations

from pydantic import Field, model_validator

from foundation.recipe import Section


class ObjectiveOptions(Section):
    """What every objective has."""

    weight: float = Field(default=1.0, ge=0, description="factor of its loss; 0 = left out")


class RrdOptions(ObjectiveOptions):
    """Of `rrd`."""

    num_interesting: int = Field(default=20, ge=1, description="items drawn from the teacher's stored list, at most all of it")
    num_uninteresting: int = Field(default=100, ge=1, description="items drawn from the rest of the catalogue")
    rank_temperature: float = Field(default=20.0, gt=0, description="an item of rank r is drawn with weight e^(-r / this)")


class Dllm2RecOptions(ObjectiveOptions):
    """Of `dllm2rec`."""

    num_listed: int = Field(default=20, ge=1, description="first items of the teacher's stored list, at most all of it")
    position: float = Field(default=0.3, ge=0, description="share of the weight by rank")
    confidence: float = Field(default=0.5, ge=0, description="share of the weight by the teacher's probability")
    consistency: float = Field(default=0.1, ge=0, description="share of the weight of items both rank high")
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


OPTIONS: dict[str, type[ObjectiveOptions]] = {
    "forward_kl": ObjectiveOptions,
    "rrd": RrdOptions,
    "dllm2rec": Dllm2RecOptions,
    "rce_kd": RceKdOptions,
}
