"""The dataset folder: what it must hold, and reading it.

    interactions.parquet  user_id str, item_id str, timestamp int64 seconds or null (null = file order),
                          optional rating float, event str
    items.parquet         item_id str, title str, optional text str, categories list[str], year int, features list[float]
    users.parquet (user_id, ...), kg.parquet (head, relation, tail), item_entity.parquet (item_id, entity): optional

The catalogue is all of items.parquet, in file order: item_index 1..I (0 is padding).

`recommender/cleaning.py` writes one from what an importer found.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from foundation import console
from foundation.artifact import Artifact, opens
from foundation.content import ONE_FILE, ContentError, check_content
from recommender.config import INTERACTION_FIELDS, ITEM_FIELDS

INTERACTIONS, ITEMS, QUARANTINE = "interactions.parquet", "items.parquet", "quarantine.parquet"
_INTERACTION_TYPES = (pl.String, pl.String, pl.Int64, pl.Float64, pl.String)
_ITEM_TYPES = (pl.String, pl.String, pl.String, pl.List(pl.String), pl.Int64, pl.List(pl.Float64))
INTERACTION_COLUMNS = dict(zip(INTERACTION_FIELDS, _INTERACTION_TYPES, strict=True))
ITEM_COLUMNS = dict(zip(ITEM_FIELDS, _ITEM_TYPES, strict=True))
OPTIONAL_TABLES = {
    "users.parquet": ("user_id",),
    "kg.parquet": ("head", "relation", "tail"),
    "item_entity.parquet": ("item_id", "entity"),
}
ROW = "__row__"  # an importer that drops or rejects lines gives each row its number under this name
REJECTED = {"table": pl.String, "row": pl.Int64, "ids": pl.String, "reason": pl.String}
_COMPLETE = ("user_id", "item_id", "timestamp", "title")


class DataError(ValueError):
    """Data that cannot be used; the message names the file, what is wrong and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(console.one_line(message))


@dataclass(frozen=True)
class Tables:
    """What an importer returns, as raw as it found it.

    `extra` maps an optional table's file name to its frame; `rejected` (columns of `REJECTED`) lists lines that are no rows;
    `left_out` counts, by reason, good rows that the import was asked to leave out.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    extra: dict[str, pl.DataFrame] = field(default_factory=dict)
    rejected: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=REJECTED))
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """Clean tables of one dataset folder."""

    interactions: pl.DataFrame
    items: pl.DataFrame

    @property
    def item_ids(self) -> list[str]:
        return self.items["item_id"].to_list()


def read_tables(folder: Path) -> Tables:
    """The raw tables of a dataset folder in the layout above."""
    for name in (INTERACTIONS, ITEMS):
        if not (folder / name).is_file():
            raise DataError(
                f"{folder} has no {name}; a dataset folder needs {INTERACTIONS} and {ITEMS} (see README, «Your own data»)"
            )
    extra = {name: read_parquet(folder / name) for name in OPTIONAL_TABLES if (folder / name).is_file()}
    return Tables(read_parquet(folder / INTERACTIONS), read_parquet(folder / ITEMS), extra)


def read_parquet(path: Path) -> pl.DataFrame:
    """A Parquet file, or a `DataError` that says why not."""
    try:
        check_content(path)
    except ContentError as error:
        raise DataError(str(error)) from None
    return pl.read_parquet(path, **ONE_FILE).drop(ROW, strict=False)


@opens
def load_dataset(artifact: Artifact) -> Dataset:
    """Read a dataset that `write_dataset` has cleaned."""
    interactions, items = (pl.read_parquet(artifact.file(name), **ONE_FILE) for name in (INTERACTIONS, ITEMS))
    for frame, columns in ((interactions, INTERACTION_COLUMNS), (items, ITEM_COLUMNS)):
        if wrong := [name for name, dtype in frame.schema.items() if columns.get(name) != dtype]:
            raise DataError(f"column {wrong[0]!r} is not as the import leaves it")
        for name in _COMPLETE:
            if name in columns and (name not in frame.columns or (name != "timestamp" and frame[name].null_count())):
                raise DataError(f"column {name!r} is missing, or empty in a row")
    if items["item_id"].is_duplicated().any() or not interactions["item_id"].is_in(items["item_id"].implode()).all():
        raise DataError("the catalogue names an item twice, or misses one that was interacted with")
    return Dataset(interactions, items)


def rejected(table: str, rows: list[int], reason: str) -> pl.DataFrame:
    """Lines of `table` that an importer could not take apart."""
    count = len(rows)
    return pl.DataFrame(
        {"table": [table] * count, "row": rows, "ids": [""] * count, "reason": [reason] * count}, schema=REJECTED
    )
