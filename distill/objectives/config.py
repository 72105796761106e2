"""Options of every objective, checked when the recipe is read; light, so that reading a recipe imports no torch."""

from __future__ import annotations

from pydantic import Field

from foundation.recipe import Section


class ObjectiveOptions(Section):
    """What every objective has."""

    weight: float = Field(default=1.0, ge=0, description="factor of its loss; 0 = left out")


class RrdOptions(ObjectiveOptions):
    """Of `rrd`."""

    num_interesting: int = Field(default=20, ge=1, description="items drawn from the teacher's stored list, at most all of it")
    num_uninteresting: int = Field(default=100, ge=1, description="items drawn from the rest of the catalogue")
    rank_temperature: float = Field(default=20.0, gt=0, description="an item of rank r is drawn with weight e^(-r / this)")


OPTIONS: dict[str, type[ObjectiveOptions]] = {"forward_kl": ObjectiveOptions, "rrd": RrdOptions}
