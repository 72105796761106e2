"""The dataset folder: what it must hold, reading it, and setting bad rows aside.

    interactions.parquet  user_id str, item_id str, timestamp int64 seconds or null (null = file order),
                          optional rating float, event str
    items.parquet         item_id str, title str, optional text str, categories list[str], year int, features list[float]
    users.parquet (user_id, ...), kg.parquet (head, relation, tail), item_entity.parquet (item_id, entity): optional

The catalogue is all of items.parquet, in file order: item_index 1..I (0 is padding).

Cleaning, in one place for every importer: a row that cannot be used is set aside; a malformed cell that a row can do without
(a year, a rating) is emptied. Both are listed in quarantine.parquet with their row (1 = the first) and the reason, and
counted. Texts lose control characters and HTML entities, which is counted too.
"""

from __future__ import annotations

import difflib
import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from foundation import console
from foundation.artifact import Artifact, Draft, opens
from foundation.content import ONE_FILE, ContentError, check_content

INTERACTIONS, ITEMS, QUARANTINE = "interactions.parquet", "items.parquet", "quarantine.parquet"
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
OPTIONAL_TABLES = {
    "users.parquet": ("user_id",),
    "kg.parquet": ("head", "relation", "tail"),
    "item_entity.parquet": ("item_id", "entity"),
}
ROW = "__row__"  # an importer that drops or rejects lines gives each row its number under this name
REJECTED = {"table": pl.String, "row": pl.Int64, "ids": pl.String, "reason": pl.String}
_IDS = ("user_id", "item_id")
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
_ENTITY = r"&(#\d+|#[xX][0-9a-fA-F]+|[a-zA-Z][a-zA-Z0-9]*);"
_YEAR_9999 = 253_402_300_799
_BAD = "__bad__"
_COMPLETE = ("user_id", "item_id", "timestamp", "title")


class DataError(ValueError):
    """Data that cannot be used; the message names the file, what is wrong and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(console.one_line(message))


@dataclass(frozen=True)
class Tables:
    """What an importer returns, as raw as it found it.

    `extra` maps an optional table's file name to its frame; `rejected` (columns of `REJECTED`) lists lines that are no rows.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    extra: dict[str, pl.DataFrame] = field(default_factory=dict)
    rejected: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=REJECTED))


@dataclass(frozen=True)
class Dataset:
    """Clean tables of one dataset folder."""

    interactions: pl.DataFrame
    items: pl.DataFrame

    @property
    def item_ids(self) -> list[str]:
        return self.items["item_id"].to_list()


def write_dataset(tables: Tables, draft: Draft, max_quarantined_fraction: float) -> None:
    """Clean the tables, write what is left into `draft`, and beside it what was set aside."""
    raw_items = _typed(tables.items, ITEM_COLUMNS, ("item_id", "title"), ITEMS)
    raw_interactions = _typed(tables.interactions, _INTERACTION_COLUMNS, _IDS, INTERACTIONS)
    emptied = pl.concat([_emptied(raw_interactions, INTERACTIONS), _emptied(raw_items, ITEMS)])
    items, bad_items = _set_aside(raw_items.with_columns(pl.col("item_id").str.strip_chars()), _item_faults(), ITEMS)
    items, num_repaired = _repair_texts(items.with_columns(pl.col("title").fill_null("")))
    if "timestamp" not in raw_interactions.columns:
        raw_interactions = raw_interactions.with_columns(timestamp=pl.lit(None, pl.Int64))
    raw_interactions = raw_interactions.with_columns(pl.col(_IDS).str.strip_chars())
    faults = _interaction_faults(items, raw_interactions["timestamp"].count() > 0)
    interactions, bad_interactions = _set_aside(raw_interactions, faults, INTERACTIONS)
    aside = pl.concat([tables.rejected, bad_interactions, bad_items])
    total = tables.interactions.height + tables.items.height + tables.rejected.height
    if aside.height > max_quarantined_fraction * total:
        counts = ", ".join(f"{count} x {reason}" for reason, count in _reason_counts(aside).items())
        first, listed = aside.row(0, named=True), draft.refused / QUARANTINE
        aside.write_parquet(listed)
        raise DataError(
            f"{aside.height} of {total} rows are malformed ({counts}; first: {first['table']} row {first['row']}), more "
            f"than data.max_quarantined_fraction = {max_quarantined_fraction}; {listed} lists them: mend the "
            "source, or raise the threshold"
        )
    if interactions.is_empty():
        raise DataError("no usable interaction is left; the table is empty or every row was set aside")
    interactions.write_parquet(draft.path / INTERACTIONS)
    items.write_parquet(draft.path / ITEMS)
    if aside.height or emptied.height:
        pl.concat([aside, emptied]).write_parquet(draft.path / QUARANTINE)
    for name, frame in tables.extra.items():
        _optional_table(frame, name).write_parquet(draft.path / name)
    draft.metrics |= {
        "num_interactions": interactions.height,
        "num_users": interactions["user_id"].n_unique(),
        "num_items": items.height,
        "num_repeats": interactions.height - interactions.n_unique(["user_id", "item_id"]),
        "quarantined": _reason_counts(aside),
        "emptied_cells": _reason_counts(emptied),
        "repaired_texts": num_repaired,
    }


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
    for frame, columns in ((interactions, _INTERACTION_COLUMNS), (items, ITEM_COLUMNS)):
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


def _typed(frame: pl.DataFrame, columns: dict, required: tuple[str, ...], table: str) -> pl.DataFrame:
    """The known columns cast to their types, with the row's number, and under `_BAD` the columns that could not be read."""
    _check_columns(frame.columns, list(columns), required, table)
    if ROW not in frame.columns:
        frame = frame.with_row_index(ROW, offset=1)
    parsed = {name: _parse(name, frame.schema[name], columns[name], table) for name in columns if name in frame.columns}
    bad = [pl.when(unreadable).then(pl.lit(name)) for name, (_, unreadable) in parsed.items()]
    return frame.select(
        pl.col(ROW).cast(pl.Int64),
        *(value.alias(name) for name, (value, _) in parsed.items()),
        pl.concat_list(bad).list.drop_nulls().alias(_BAD),
    )


def _emptied(frame: pl.DataFrame, table: str) -> pl.DataFrame:
    """The cells that `_typed` could not read, in rows that can do without them (columns of `REJECTED`)."""
    cells = frame.explode(_BAD).filter(pl.col(_BAD).is_not_null() & (pl.col(_BAD) != "timestamp"))
    return _listed(cells.with_columns(reason=pl.format("{} emptied: it cannot be read as its type", pl.col(_BAD))), table)


def _check_columns(found: list[str], known: list[str], required: tuple[str, ...], table: str) -> None:
    """A required column that is absent, or an optional one that is misspelt, is an error naming the nearest."""
    others = {column.lower(): column for column in found if column not in known}
    for column in known:
        if column not in found:
            close = difflib.get_close_matches(column, others, n=1, cutoff=0.5 if column in required else 0.8)
            if column in required:
                hint = f"; did you mean {others[close[0]]!r}?" if close else ""
                raise DataError(
                    f"{table} has no column {column!r} (it has: {', '.join(name for name in found if name != ROW)}){hint}"
                )
            if close:
                raise DataError(
                    f"{table} has a column {others[close[0]]!r}; did you mean {column!r}? Rename the column, or leave it out"
                )


def _parse(name: str, source: pl.DataType, target: Any, table: str) -> tuple[pl.Expr, pl.Expr]:
    """(value, whether something was there that cannot be read) of a column; a type that never fits is an error."""
    column = pl.col(name)
    is_text = source == pl.String or isinstance(source, pl.Categorical | pl.Enum)
    if source == pl.Null:
        return pl.lit(None, target), pl.lit(False)
    if target == pl.String and (is_text or source.is_integer() or (name not in _IDS and source.is_numeric())):
        return column.cast(pl.String), pl.lit(False)
    if name == "timestamp" and (source == pl.Date or isinstance(source, pl.Datetime)):
        return column.cast(pl.Datetime("us")).dt.epoch("s"), pl.lit(False)
    if target in (pl.Int64, pl.Float64) and (is_text or source.is_numeric()):
        given = column.cast(pl.String).str.strip_chars().replace("", None) if is_text else column
        number = given.cast(pl.Float64, strict=False)
        given = pl.when(~number.is_nan().fill_null(False)).then(given)  # NaN is how some writers say nothing
        if target == pl.Float64:
            value = pl.when(number.is_finite()).then(number)
        else:  # by way of floats, which hold 53 bits, only where it must be
            value = pl.coalesce(given.cast(pl.Int64, strict=False), number.floor().cast(pl.Int64, strict=False))
            value = pl.when(given.is_not_null()).then(value)
        return value, given.is_not_null() & value.is_null()
    if isinstance(target, pl.List) and isinstance(source, pl.List | pl.Array) and not source.inner.is_nested():  # type: ignore[attr-defined]
        value = column.cast(pl.List(source.inner)).cast(target, strict=False)
        if target == pl.List(pl.Float64):
            value = pl.when(value.list.eval(pl.element().is_finite().fill_null(False)).list.all()).then(value)
        return value, column.is_not_null() & value.is_null()
    wanted = {pl.String: "texts or integers", pl.Int64: "whole numbers", pl.Float64: "numbers"}.get(target, "lists")
    raise DataError(f"{table}: column {name!r} holds {source}, it must hold {wanted}; convert it before the import")


def _repair_texts(items: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Titles, texts and categories without control characters and entities; how many cells that changed, by column."""
    changed = {}
    for name in ("title", "text", "categories"):
        if name in items.columns:
            is_list = items.schema[name] != pl.String
            before = items[name]
            items = items.with_columns(pl.col(name).list.eval(_clean(pl.element())) if is_list else _clean(pl.col(name)))
            if count := int((before != items[name]).sum()):
                changed[name] = count
    return items, changed


def _clean(text: pl.Expr) -> pl.Expr:
    unescaped = text.map_elements(html.unescape, pl.String)
    text = pl.when(text.str.contains(_ENTITY)).then(unescaped).otherwise(text)
    return text.str.replace_all(_CONTROL, " ").str.strip_chars()


def _item_faults() -> Any:
    repeated = pl.col("item_id").is_duplicated() & ~pl.col("item_id").is_first_distinct()
    return _id_faults("item_id").when(repeated).then(pl.lit("item_id repeated"))


def _interaction_faults(items: pl.DataFrame, has_times: bool) -> Any:
    time = pl.col("timestamp")
    return (
        _id_faults("user_id", "item_id")
        .when(~pl.col("item_id").is_in(items["item_id"].implode()))
        .then(pl.lit("item_id is not in items.parquet"))
        .when(pl.col(_BAD).list.contains("timestamp"))
        .then(pl.lit("timestamp is not a whole number"))
        .when(time.is_null() & has_times)
        .then(pl.lit("no timestamp where other rows have one"))
        .when(time < 0)
        .then(pl.lit("timestamp is negative"))
        .when(time > _YEAR_9999)
        .then(pl.lit("timestamp is after the year 9999 (seconds are expected; are these milliseconds?)"))
    )


def _id_faults(*names: str) -> Any:
    faults: Any = pl
    for name in names:
        column = pl.col(name)
        faults = faults.when(column.is_null() | (column == "")).then(pl.lit(f"{name} is missing"))
        faults = faults.when(column.str.contains(r"[\x00-\x1f\x7f]")).then(pl.lit(f"{name} holds control characters"))
        faults = faults.when(column.str.contains("\ufffd")).then(pl.lit(f"{name} is not valid UTF-8"))
    return faults


def _set_aside(frame: pl.DataFrame, faults: Any, table: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(rows without a fault, the others as listed in the quarantine)."""
    marked = frame.with_columns(reason=faults)
    good = marked.filter(pl.col("reason").is_null()).drop(ROW, _BAD, "reason")
    return good, _listed(marked.filter(pl.col("reason").is_not_null()), table)


def _listed(rows: pl.DataFrame, table: str) -> pl.DataFrame:
    ids = pl.concat_str([pl.col(c).fill_null("") for c in _IDS if c in rows.columns], separator=" ")
    return rows.select(table=pl.lit(table), row=pl.col(ROW), ids=ids, reason=pl.col("reason"))


def _optional_table(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    if missing := [column for column in OPTIONAL_TABLES[name] if column not in frame.columns]:
        raise DataError(f"{name} has no column {missing[0]!r} (it has: {', '.join(frame.columns)})")
    try:
        return frame.with_columns(pl.col(column).cast(pl.String) for column in OPTIONAL_TABLES[name])
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{name}: {_first_line(error)}") from None


def _reason_counts(bad: pl.DataFrame) -> dict[str, int]:
    return {row["reason"]: row["len"] for row in bad.group_by("reason").len().sort("reason").iter_rows(named=True)}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
