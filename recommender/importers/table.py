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

from recommender.data import DataError, Tables


def read(
    source: Path,
    columns: dict[str, str] | None = None,
    items: str | None = None,
    item_columns: dict[str, str] | None = None,
    separator: str = ",",
) -> Tables:
    """`columns` and `item_columns` map our column names to the table's own; `timestamp` may be a datetime."""
    interactions = _rename(_read(source, separator), columns or {}, source)
    if "timestamp" in interactions.columns:
        interactions = interactions.with_columns(_seconds(interactions["timestamp"]))
    if items is None:
        ids = (
            interactions["item_id"].unique(maintain_order=True).drop_nulls()
            if "item_id" in interactions.columns
            else pl.Series([], dtype=pl.String)
        )
        return Tables(interactions, pl.DataFrame({"item_id": ids, "title": ids}), {})
    catalogue = _rename(_read(Path(items).expanduser(), separator), item_columns or {}, items)
    if "categories" in catalogue.columns and catalogue["categories"].dtype == pl.String:
        catalogue = catalogue.with_columns(pl.col("categories").str.split("|"))
    return Tables(interactions, catalogue, {})


def _read(path: Path, separator: str) -> pl.DataFrame:
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        return pl.read_csv(path, separator=separator, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: {str(error).splitlines()[0]}") from None


def _rename(frame: pl.DataFrame, columns: dict[str, str], path: Path | str) -> pl.DataFrame:
    missing = [theirs for theirs in columns.values() if theirs not in frame.columns]
    if missing:
        raise DataError(f"{path} has no column {', '.join(map(repr, missing))}; it has: {', '.join(frame.columns)}")
    shadowed = [ours for ours, theirs in columns.items() if ours in frame.columns and ours != theirs]
    return frame.drop(shadowed).rename({theirs: ours for ours, theirs in columns.items()})


def _seconds(timestamp: pl.Series) -> pl.Series:
    if timestamp.dtype == pl.String:
        number = timestamp.cast(pl.Float64, strict=False)
        if number.null_count() > timestamp.null_count():
            return timestamp.str.to_datetime(strict=False).dt.epoch("s").alias("timestamp")
        timestamp = number
    if timestamp.dtype.is_temporal():
        return timestamp.cast(pl.Datetime).dt.epoch("s").alias("timestamp")
    return timestamp.cast(pl.Int64).alias("timestamp")
