"""Options of every regulariser, checked when the recipe is read; light, so that reading a recipe imports no torch."""

from __future__ import annotations

from pydantic import Field

from foundation.recipe import Section


class RegulariserOptions(Section):
    """What every regulariser has."""

    weight: float = Field(default=0.1, ge=0, description="factor of its loss; 0 = left out")


class HistoryContrastOptions(RegulariserOptions):
    """Of `history_contrast`."""

    crop: float = Field(default=0.6, gt=0, le=1, description="share of a history that a crop keeps")
    mask: float = Field(default=0.3, ge=0, lt=1, description="share of its items that are masked")
    reorder: float = Field(default=0.6, ge=0, le=1, description="share that is put in another order")
    temperature: float = Field(default=0.5, gt=0)


class TextAlignmentOptions(RegulariserOptions):
    """Of `text_alignment`."""

    temperature: float = Field(default=0.1, gt=0)
    same_text: float = Field(default=0.99, gt=0, le=1, description="cosine of texts from which two items are no negatives")


OPTIONS: dict[str, type[RegulariserOptions]] = {
    "history_contrast": HistoryContrastOptions,
    "text_alignment": TextAlignmentOptions,
}
