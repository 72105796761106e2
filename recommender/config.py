"""Recipe sections of the domain: the data and the student."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from foundation.recipe import Section, check_options

InteractionField = Literal["user_id", "item_id", "timestamp", "rating", "event"]
ItemField = Literal["item_id", "title", "text", "categories", "year", "features"]
INTERACTION_FIELDS: tuple[str, ...] = get_args(InteractionField)
ITEM_FIELDS: tuple[str, ...] = get_args(ItemField)


def _once_each(mapping: dict[Any, str]) -> dict[Any, str]:
    if len(set(mapping.values())) < len(mapping):
        raise ValueError("it names a column of the table twice")
    return mapping


class NoOptions(Section):
    """Of an importer that has none."""


class RecBoleOptions(Section):
    """Of importer "recbole"."""

    items: str | None = Field(default=None, min_length=1, description="path or URL of the .item file, where source is one file")


class TableOptions(Section):
    """Of importer "table": our column names to the table's own, and a second file with the items."""

    columns: Annotated[dict[InteractionField, str], AfterValidator(_once_each)] = Field(
        default={}, description="our column of the interactions -> the table's"
    )
    items: str | None = Field(default=None, min_length=1, description="path or URL of the table of items")
    item_columns: Annotated[dict[ItemField, str], AfterValidator(_once_each)] = Field(
        default={}, description="the same of the items"
    )
    separator: str = Field(default=",", min_length=1, max_length=1, description="of cells, in a CSV")


class AmazonOptions(Section):
    """Of importer "amazon"."""

    metadata: str = Field(min_length=1, description="path or URL of the metadata's JSON lines")
    k_core: int = Field(default=5, ge=1, description="every user and item has at least so many interactions")


IMPORTER_OPTIONS: dict[str, type[Section]] = {
    "folder": NoOptions,
    "recbole": RecBoleOptions,
    "movielens": NoOptions,
    "amazon": AmazonOptions,
    "table": TableOptions,
}


class DataSection(Section):
    """Where the interactions and items come from; see `recommender/importers`."""

    importer: Literal["folder", "recbole", "movielens", "amazon", "table"] = "folder"
    source: str = Field(
        default="", description="asset name, path (from where the command runs) or URL, its digest behind it: …#sha256=HEX"
    )
    options: dict[str, Any] = Field(default={}, description="the importer's own options")
    max_quarantined_fraction: float = Field(
        default=0.01, ge=0, le=1, description="of all rows; where more cannot be used, the import stops"
    )

    @model_validator(mode="after")
    def _check_options(self) -> DataSection:
        check_options(IMPORTER_OPTIONS[self.importer], self.options, "data.options")
        return self


class OptimSection(Section):
    """One training run: AdamW, linear warm-up then cosine decay, early stopping on validation NDCG@10."""

    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0, le=10)
    batch_size: int = Field(default=64, ge=1, le=65536, description="windows a step")
    epochs: int = Field(default=30, ge=1, le=10_000)
    patience: int = Field(default=5, ge=1, description="epochs without a better validation NDCG@10 before stopping")
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    final_learning_rate_fraction: float = Field(default=0.1, ge=0, le=1, description="where the cosine ends")
    ema_decay: float = Field(
        default=0.0, ge=0, lt=1, description="a step; the moving average of the weights is validated and kept; 0 = off"
    )
    clip_norm: float = Field(default=1.0, gt=0)
    checkpoint_every_s: float = Field(default=60.0, gt=0)
    matmul_precision: Literal["highest", "high", "medium"] = Field(
        default="highest",
        exclude_if=lambda precision: precision == "highest",  # what was trained before there was a choice is still that
        description="of float32 products in training (torch.set_float32_matmul_precision): `medium` multiplies in bfloat16 and "
        "sums in float32 where the processor can, which is faster, most of all with a large catalogue",
    )
    validation_users: int = Field(default=0, ge=0, description="a fixed sample of users for model selection; 0 = all")


class StudentSection(Section):
    """The student architecture, the same for every arm."""

    hidden_size: int = Field(default=64, ge=4, le=4096)
    num_layers: int = Field(default=2, ge=1, le=24)
    num_heads: int = Field(default=2, ge=1, le=64)
    max_length: int = Field(default=50, ge=2, le=4096, description="most recent items the encoder reads")
    dropout: float = Field(default=0.3, ge=0, lt=1)
    text_scale: float = Field(default=1.0, ge=0, le=100, description="eta in e_i = b_i + eta W z_i")
    optim: OptimSection = OptimSection()
