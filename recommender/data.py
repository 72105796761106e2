"""The dataset folder: what it must hold, reading it, and setting bad rows aside.

    interactions.parquet  user_id str, item_id str, timestamp int64 seconds or null (null = file order),
                          optional rating float, event str
    items.parquet         item_id str, title str, optional text str, categories list[str], year int, features list[float]
    users.parquet, kg.parquet (head, relation, tail), item_entity.parquet (item_id, entity): optional, passed through

The catalogue is all of items.parquet, in file order: item_index 1..I (0 is padding).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from foundation.artifact import Draft

INTERACTIONS, ITEMS, QUARANTINE = "interactions.parquet", "items.parquet", "quarantine.parquet"
OPTIONAL_TABLES = ("users.parquet", "kg.parquet", "item_entity.parquet")
_INTERACTION_COLUMNS = {
    "user_id": pl.String,
    "item_id": pl.String,
    "timestamp": pl.Int64,
    "rating": pl.Float64,
    "event": pl.String,
}
ITEM_COLUMNS = {
    "item_id": pl.String,
    "title": pl.String,
    "text": pl.String,
    "categories": pl.List(pl.String),
    "year": pl.Int64,
    "features": pl.List(pl.Float64),
}


class DataError(ValueError):
    """Data that cannot be used; the message names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class Tables:
    """What an importer returns; `extra` maps an optional table's file name to its frame."""

    interactions: pl.DataFrame
    items: pl.DataFrame
    extra: dict[str, pl.DataFrame]


@dataclass(frozen=True)
class Dataset:
    """Clean tables of one dataset folder."""

    interactions: pl.DataFrame
    items: pl.DataFrame

    @property
    def item_ids(self) -> list[str]:
        return self.items["item_id"].to_list()


def write_dataset(tables: Tables, draft: Draft, max_quarantined_fraction: float) -> None:
    """Validate, set bad rows aside (quarantine.parquet, with row numbers) and write the dataset into `draft`."""
    items, bad_items = _clean_items(_conform(tables.items, ITEM_COLUMNS, ("item_id", "title"), ITEMS))
    interactions = _conform(tables.interactions, _INTERACTION_COLUMNS, ("user_id", "item_id"), INTERACTIONS)
    interactions, bad_rows = _clean_interactions(interactions, items)
    bad = pl.concat([bad_rows, bad_items])
    total = tables.interactions.height + tables.items.height
    if bad.height > max_quarantined_fraction * total:
        counts = ", ".join(f"{count} x {reason}" for reason, count in _reason_counts(bad).items())
        raise DataError(
            f"{bad.height} of {total} rows are malformed ({counts}), more than data.max_quarantined_fraction = "
            f"{max_quarantined_fraction}; mend the source, or raise the threshold"
        )
    if interactions.is_empty():
        raise DataError("no usable interaction is left; the table is empty or every row was set aside")
    interactions.write_parquet(draft.path / INTERACTIONS)
    items.write_parquet(draft.path / ITEMS)
    if bad.height:
        bad.write_parquet(draft.path / QUARANTINE)
    for name, frame in tables.extra.items():
        frame.write_parquet(draft.path / name)
    draft.metrics |= {
        "num_interactions": interactions.height,
        "num_users": interactions["user_id"].n_unique(),
        "num_items": items.height,
        "quarantined": _reason_counts(bad),
    }


def read_tables(folder: Path) -> Tables:
    """The raw tables of a dataset folder in the layout above."""
    for name in (INTERACTIONS, ITEMS):
        if not (folder / name).is_file():
            raise DataError(
                f"{folder} has no {name}; a dataset folder needs {INTERACTIONS} and {ITEMS} (see README, «Your own data»)"
            )
    extra = {name: pl.read_parquet(folder / name) for name in OPTIONAL_TABLES if (folder / name).is_file()}
    return Tables(pl.read_parquet(folder / INTERACTIONS), pl.read_parquet(folder / ITEMS), extra)


def load_dataset(folder: Path) -> Dataset:
    """Read a dataset that `write_dataset` has cleaned."""
    tables = read_tables(folder)
    return Dataset(tables.interactions, tables.items)


def _conform(frame: pl.DataFrame, columns: dict, required: tuple[str, ...], name: str) -> pl.DataFrame:
    """Keep the known columns, cast to their types; a required column that is absent is an error naming the nearest one."""
    for column in required:
        if column not in frame.columns:
            close = difflib.get_close_matches(column, frame.columns, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise DataError(f"{name} has no column {column!r} (it has: {', '.join(frame.columns)}){hint}")
    present = [c for c in columns if c in frame.columns]
    if "timestamp" in present and frame["timestamp"].dtype.is_temporal():
        frame = frame.with_columns(pl.col("timestamp").cast(pl.Datetime).dt.epoch("s"))
    try:
        return frame.select(pl.col(c).cast(columns[c]) for c in present).with_row_index("row")
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{name}: {str(error).splitlines()[0]}") from None


def _clean_items(items: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    items = items.with_columns(pl.col("item_id").str.strip_chars(), pl.col("title").fill_null("").str.strip_chars())
    reason = (
        pl.when(_blank("item_id"))
        .then(pl.lit("item without an id"))
        .when(pl.col("item_id").is_duplicated() & ~pl.col("item_id").is_first_distinct())
        .then(pl.lit("item id repeated"))
    )
    return _set_aside(items, reason, ITEMS)


def _clean_interactions(interactions: pl.DataFrame, items: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    interactions = interactions.with_columns(pl.col("user_id", "item_id").str.strip_chars())
    if "timestamp" not in interactions.columns:
        interactions = interactions.with_columns(timestamp=pl.lit(None, pl.Int64))
    missing_time = pl.col("timestamp").is_null() if interactions["timestamp"].count() else pl.lit(False)
    reason = (
        pl.when(_blank("user_id"))
        .then(pl.lit("interaction without a user id"))
        .when(_blank("item_id"))
        .then(pl.lit("interaction without an item id"))
        .when(~pl.col("item_id").is_in(items["item_id"].implode()))
        .then(pl.lit("interaction with an item that is not in items.parquet"))
        .when(missing_time)
        .then(pl.lit("no timestamp where other rows have one"))
    )
    return _set_aside(interactions, reason, INTERACTIONS)


def _blank(column: str) -> pl.Expr:
    return pl.col(column).is_null() | (pl.col(column) == "")


def _set_aside(frame: pl.DataFrame, reason: pl.Expr, table: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    marked = frame.with_columns(reason=reason)
    good = marked.filter(pl.col("reason").is_null()).drop("row", "reason")
    ids = pl.concat_str([pl.col(c).fill_null("") for c in ("user_id", "item_id") if c in frame.columns], separator=" ")
    bad = marked.filter(pl.col("reason").is_not_null()).select(
        table=pl.lit(table), row=pl.col("row").cast(pl.Int64), ids=ids, reason=pl.col("reason")
    )
    return good, bad


def _reason_counts(bad: pl.DataFrame) -> dict[str, int]:
    return {row["reason"]: row["len"] for row in bad.group_by("reason").len().sort("reason").iter_rows(named=True)}
