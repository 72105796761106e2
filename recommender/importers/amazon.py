"""Amazon reviews as published (2018 and 2023): ratings CSV or review JSON lines, and metadata JSON lines for the items.

2018: https://nijianmo.github.io/amazon/ (reviewerID, asin, overall, unixReviewTime; CSV: item, user, rating, time, no header)
2023: https://amazon-reviews-2023.github.io/ (user_id, parent_asin, rating, timestamp in ms; CSV with header)
The k-core is taken here (`k_core`), because the published ratings-only files are not filtered.
"""

from __future__ import annotations

import gzip
import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import polars as pl

from recommender.data import DataError, Tables

_MILLISECONDS_FROM = 10**11


def read(source: Path, metadata: str, k_core: int = 5) -> Tables:
    """`source`: ratings CSV or review JSON lines (optionally .gz); `metadata`: path or URL of the metadata JSON lines."""
    from recommender.importers import locate

    interactions = _ratings_csv(source) if ".csv" in source.suffixes else _reviews(source)
    items = _items(locate(metadata))
    interactions = _k_core(interactions.join(items.select("item_id"), on="item_id", how="semi", maintain_order="left"), k_core)
    return Tables(
        interactions, items.join(interactions.select("item_id").unique(), on="item_id", how="semi", maintain_order="left"), {}
    )


def _ratings_csv(path: Path) -> pl.DataFrame:
    with _open(path) as stream:
        content = stream.read()
    first = content.split(b"\n", 1)[0].decode("utf-8", "replace")
    if "user_id" in first:
        frame = pl.read_csv(content, infer_schema=False)
        frame = frame.rename({"parent_asin": "item_id"} if "parent_asin" in frame.columns else {})
    else:
        frame = pl.read_csv(
            content, has_header=False, new_columns=["item_id", "user_id", "rating", "timestamp"], infer_schema=False
        )
    return _seconds(frame.select("user_id", "item_id", pl.col("rating", "timestamp").cast(pl.Float64)))


def _reviews(path: Path) -> pl.DataFrame:
    rows = [
        (
            row.get("user_id", row.get("reviewerID")),
            row.get("parent_asin", row.get("asin")),
            row.get("rating", row.get("overall")),
            row.get("timestamp", row.get("unixReviewTime")),
        )
        for row in _json_lines(path)
    ]
    schema = {"user_id": pl.String, "item_id": pl.String, "rating": pl.Float64, "timestamp": pl.Float64}
    return _seconds(pl.DataFrame(rows, schema=schema, orient="row", strict=False))


def _seconds(frame: pl.DataFrame) -> pl.DataFrame:
    time = pl.col("timestamp").cast(pl.Int64)
    return frame.with_columns(timestamp=pl.when(time >= _MILLISECONDS_FROM).then(time // 1000).otherwise(time))


def _items(path: Path) -> pl.DataFrame:
    rows = []
    for row in _json_lines(path):
        text = row.get("description") or ""
        rows.append(
            {
                "item_id": row.get("parent_asin") or row.get("asin"),
                "title": html.unescape(row.get("title") or ""),
                "text": html.unescape(" ".join(text) if isinstance(text, list) else str(text)),
                "categories": [html.unescape(str(c)) for c in row.get("categories") or row.get("category") or []],
            }
        )
    schema = {"item_id": pl.String, "title": pl.String, "text": pl.String, "categories": pl.List(pl.String)}
    return pl.DataFrame(rows, schema=schema).unique("item_id", keep="first", maintain_order=True).filter(pl.col("title") != "")


def _k_core(interactions: pl.DataFrame, k: int) -> pl.DataFrame:
    """Drop users and items with fewer than `k` interactions until none is left."""
    while True:
        kept = interactions.filter((pl.len().over("user_id") >= k) & (pl.len().over("item_id") >= k))
        if kept.height == interactions.height:
            return kept
        interactions = kept


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise DataError(f"{path}, line {number}: not JSON ({error})") from None


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]
