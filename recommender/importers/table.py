"""Any CSV or Parquet table with a column mapping.

    [data]
    importer = "table"
    source = "clicks.csv"
    options = { items = "products.parquet", columns = { user_id = "customer", item_id = "sku", timestamp = "ts" },
                item_columns = { item_id = "sku", title = "name" } }

Without `items` the catalogue is what was interacted with, and an item's title is its id.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recommender.data import REJECTED, ROW, DataError, Tables, read_parquet
from recommender.importers.delimited import read_csv


def read(
    source: Path,
    columns: dict[str, str] | None = None,
    items: str | None = None,
    item_columns: dict[str, str] | None = None,
    separator: str = ",",
) -> Tables:
    """`columns` and `item_columns` map our column names to the table's own; `timestamp` may be a date and time (ISO 8601)."""
    from recommender.importers import locate

    raw, bad = _read(source, separator)
    interactions = _rename(raw, columns or {}, source)
    if "timestamp" in interactions.columns and interactions.schema["timestamp"] == pl.String:
        interactions = interactions.with_columns(_seconds(pl.col("timestamp")))
    if items is None:
        if "item_id" not in interactions.columns:
            raise DataError(f"{source} has no column 'item_id'; it has: {_names(raw)}; map it by data.options.columns")
        ids = interactions["item_id"].unique(maintain_order=True).drop_nulls()
        return Tables(interactions, pl.DataFrame({"item_id": ids, "title": ids}), rejected=bad)
    raw, bad_items = _read(locate(items), separator)
    catalogue = _rename(raw, item_columns or {}, items)
    if "categories" in catalogue.columns and catalogue["categories"].dtype == pl.String:
        catalogue = catalogue.with_columns(pl.col("categories").str.split("|"))
    return Tables(interactions, catalogue, rejected=pl.concat([bad, bad_items]))


def _read(path: Path, separator: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    if path.suffix == ".parquet":
        return read_parquet(path), pl.DataFrame(schema=REJECTED)
    return read_csv(path, path.name, separator=separator)


def _rename(frame: pl.DataFrame, columns: dict[str, str], path: Path | str) -> pl.DataFrame:
    missing = [theirs for theirs in columns.values() if theirs not in frame.columns]
    if missing:
        raise DataError(f"{path} has no column {', '.join(map(repr, missing))}; it has: {_names(frame)}")
    shadowed = [ours for ours, theirs in columns.items() if ours in frame.columns and ours != theirs]
    return frame.drop(shadowed).rename({theirs: ours for ours, theirs in columns.items()})


def _names(frame: pl.DataFrame) -> str:
    return ", ".join(name for name in frame.columns if name != ROW)


def _seconds(text: pl.Expr) -> pl.Expr:
    """Dates and times written out (2024-01-31, 2024-01-31T12:00:00; UTC) as seconds; the rest is left to be judged."""
    text = text.str.strip_chars()
    day = text.str.extract(r"^(\d{4}-\d\d-\d\d)(?:$|[T ])")
    time = text.str.extract(r"^\d{4}-\d\d-\d\d[T ](\d\d:\d\d(?::\d\d)?)(?:\.\d+)?Z?$")
    clock = pl.when(text.str.len_chars() == 10).then(pl.lit("00:00:00")).when(time.str.len_chars() == 5).then(time + ":00")
    parsed = (day + "T" + clock.otherwise(time)).str.to_datetime("%Y-%m-%dT%H:%M:%S", strict=False)
    return pl.coalesce(parsed.dt.epoch("s").cast(pl.String), text)
