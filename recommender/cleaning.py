"""Cleaning, in one place for every importer: raw tables in, a dataset folder out, and a list of everything that was wrong.

A row that cannot be used is set aside; a malformed cell that a row can do without (a year, a rating) is emptied; a text loses
control characters and HTML entities. All of it is listed in quarantine.parquet with its table, row (1 = the first) and reason,
and counted; only rows set aside count towards the threshold that stops an import.
"""

from __future__ import annotations

import difflib
import html
from typing import Any

import polars as pl

from foundation import console
from foundation.artifact import Draft
from foundation.failure import first_line
from recommender.data import (
    INTERACTION_COLUMNS,
    INTERACTIONS,
    ITEM_COLUMNS,
    ITEMS,
    OPTIONAL_TABLES,
    QUARANTINE,
    ROW,
    DataError,
    Tables,
)

_IDS = ("user_id", "item_id")
_TEXTS = ("title", "text", "categories")
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
_ENTITY = r"&(#\d+|#[xX][0-9a-fA-F]+|[a-zA-Z][a-zA-Z0-9]*);"
_NOT_UTF8 = "\ufffd"
_YEAR_9999 = 253_402_300_799
_BAD = "__bad__"


def write_dataset(tables: Tables, draft: Draft, max_quarantined_fraction: float) -> None:
    """Clean the tables, write what is left into `draft`, and beside it the list of what was wrong."""
    items, bad_items, mended_items = _clean_items(tables.items)
    interactions, bad_interactions, mended = _clean_interactions(tables.interactions, items)
    aside = pl.concat([tables.rejected, bad_interactions, bad_items])
    total = tables.interactions.height + tables.items.height + tables.rejected.height
    _require_few(aside, total, max_quarantined_fraction, draft)
    if interactions.is_empty():
        raise DataError("no usable interaction is left; the table is empty or every row was set aside")
    interactions.write_parquet(draft.path / INTERACTIONS)
    items.write_parquet(draft.path / ITEMS)
    mended = pl.concat([mended, mended_items])
    if aside.height or mended.height:
        pl.concat([aside, mended]).write_parquet(draft.path / QUARANTINE)
    for name, frame in tables.extra.items():
        _optional_table(frame, name).write_parquet(draft.path / name)
    draft.metrics |= {
        "num_interactions": interactions.height,
        "num_users": interactions["user_id"].n_unique(),
        "num_items": items.height,
        "num_repeats": interactions.height - interactions.n_unique(["user_id", "item_id"]),
        "quarantined": _reason_counts(aside),
        "mended": _reason_counts(mended),
        "left_out": tables.left_out,
    }
    _say(draft.metrics)


def write_items(raw: pl.DataFrame, draft: Draft, max_quarantined_fraction: float) -> pl.DataFrame:
    """Clean a table of items alone, write it into `draft` and the list of what was wrong beside it; the clean table."""
    items, aside, mended = _clean_items(raw)
    _require_few(aside, raw.height, max_quarantined_fraction, draft)
    if items.is_empty():
        raise DataError("no usable item is there; the table is empty or every row was set aside")
    items.write_parquet(draft.path / ITEMS)
    if aside.height or mended.height:
        pl.concat([aside, mended]).write_parquet(draft.path / QUARANTINE)
    draft.metrics |= {"quarantined": _reason_counts(aside), "mended": _reason_counts(mended), "left_out": {}}
    _say(draft.metrics)
    return items


def _say(metrics: dict[str, Any]) -> None:
    for name, what in (("quarantined", "set aside"), ("mended", "mended"), ("left_out", "left out as asked")):
        if metrics[name]:
            console.say(f"{what}: " + ", ".join(f"{count:,} x {reason}" for reason, count in metrics[name].items()))


def _require_few(aside: pl.DataFrame, total: int, max_fraction: float, draft: Draft) -> None:
    """Stop the import, and leave the list of bad rows behind, if there are too many."""
    if aside.height <= max_fraction * total:
        return
    counts = ", ".join(f"{count} x {reason}" for reason, count in _reason_counts(aside).items())
    first, listed = aside.row(0, named=True), draft.refused / QUARANTINE
    aside.write_parquet(listed)
    raise DataError(
        f"{aside.height} of {total} rows are malformed ({counts}; first: {first['table']} row {first['row']}), more "
        f"than data.max_quarantined_fraction = {max_fraction}; {listed} lists them: mend the source, or raise the threshold"
    )


def _clean_items(raw: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """(the catalogue, rows set aside, what was mended)."""
    typed = _typed(raw, ITEM_COLUMNS, ("item_id", "title"), ITEMS)
    good, bad = _set_aside(typed.with_columns(pl.col("item_id").str.strip_chars()), _item_faults(), ITEMS)
    texts = [name for name in _TEXTS if name in good.columns]
    clean = good.with_columns(_clean_column(name, good.schema[name]) for name in texts).with_columns(
        pl.col("title").fill_null("")
    )
    notes = [_emptied(typed, ITEMS), *(_text_notes(name, good, clean) for name in texts)]
    no_title = clean.filter(pl.col("title") == "").with_columns(reason=pl.lit("title is missing"))
    return clean.drop(ROW, _BAD), bad, pl.concat([*notes, _listed(no_title, ITEMS)])


def _clean_interactions(raw: pl.DataFrame, items: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """(the interactions with known items, rows set aside, what was mended)."""
    typed = _typed(raw, INTERACTION_COLUMNS, _IDS, INTERACTIONS)
    if "timestamp" not in typed.columns:
        typed = typed.with_columns(timestamp=pl.lit(None, pl.Int64))
    typed = typed.with_columns(pl.col(_IDS).str.strip_chars())
    columns = [name for name in INTERACTION_COLUMNS if name in typed.columns]
    faults = _interaction_faults(items, columns, typed["timestamp"].count() > 0)
    good, bad = _set_aside(typed, faults, INTERACTIONS)
    return good.drop(ROW, _BAD), bad, _emptied(typed, INTERACTIONS)


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


def _clean_column(name: str, dtype: Any) -> pl.Expr:
    return _clean(pl.col(name)) if dtype == pl.String else pl.col(name).list.eval(_clean(pl.element()))


def _text_notes(name: str, before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """The rows whose text in column `name` was mended, or came with bytes that are not UTF-8 (columns of `REJECTED`)."""
    text = pl.col(name) if before.schema[name] == pl.String else pl.col(name).list.join("", ignore_nulls=True)
    damaged = before.filter(text.str.contains(_NOT_UTF8, literal=True))
    changed = before.filter((before[name] != after[name]).fill_null(False))
    return pl.concat(
        [
            _listed(changed.with_columns(reason=pl.lit(f"{name}: control characters or HTML entities taken out")), ITEMS),
            _listed(damaged.with_columns(reason=pl.lit(f"{name} is not valid UTF-8, its bad bytes were replaced")), ITEMS),
        ]
    )


def _clean(text: pl.Expr) -> pl.Expr:
    unescaped = text.map_elements(html.unescape, pl.String)
    text = pl.when(text.str.contains(_ENTITY)).then(unescaped).otherwise(text)
    return text.str.replace_all(_CONTROL, " ").str.strip_chars()


def _item_faults() -> Any:
    repeated = pl.col("item_id").is_duplicated() & ~pl.col("item_id").is_first_distinct()
    return _id_faults("item_id").when(repeated).then(pl.lit("item_id repeated"))


def _interaction_faults(items: pl.DataFrame, columns: list[str], has_times: bool) -> Any:
    time = pl.col("timestamp")
    same = pl.struct(columns)
    again = same.is_duplicated() & ~same.is_first_distinct() if has_times else pl.lit(False)
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
        .when(again)
        .then(pl.lit("the same as an earlier row"))
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
    """(rows without a fault, still numbered; the others as listed in the quarantine)."""
    marked = frame.with_columns(reason=faults)
    good = marked.filter(pl.col("reason").is_null()).drop("reason")
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
        raise DataError(f"{name}: {first_line(str(error))}") from None


def _reason_counts(bad: pl.DataFrame) -> dict[str, int]:
    return {row["reason"]: row["len"] for row in bad.group_by("reason").len().sort("reason").iter_rows(named=True)}
