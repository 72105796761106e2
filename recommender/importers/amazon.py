"""Amazon reviews as published (2018 and 2023): ratings CSV or review JSON lines, and metadata JSON lines for the items.

2018: https://nijianmo.github.io/amazon/ (reviewerID, asin, overall, unixReviewTime; CSV: item, user, rating, time, no header)
2023: https://amazon-reviews-2023.github.io/ (user_id, parent_asin, rating, timestamp in ms; CSV with header)
The k-core is taken here (`k_core`), because the published ratings-only files are not filtered: of the rows that can be used,
those whose item has metadata with a title, until every user and item has k. What that leaves out is not malformed: it is
counted and said, but not listed by row.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from foundation.archive import lines, read_bytes
from recommender.data import ROW, DataError, Tables, rejected
from recommender.importers.delimited import read_csv

_MILLISECONDS_FROM = 10**11


def read(source: Path, metadata: str, k_core: int = 5) -> Tables:
    """`source`: ratings CSV or review JSON lines (optionally .gz); `metadata`: path or URL of the metadata JSON lines."""
    from recommender.importers import locate

    interactions, bad = _ratings_csv(source) if ".csv" in source.suffixes else _reviews(source)
    items, bad_items, left_out = _items(locate(metadata))
    usable = pl.col("user_id").is_not_null() & pl.col("item_id").is_not_null()
    usable &= pl.col("timestamp").cast(pl.Float64, strict=False).is_finite().fill_null(False)
    sold = interactions.filter(usable).join(items.select("item_id"), on="item_id", how="semi", maintain_order="left")
    core = _k_core(sold, k_core)
    num_usable = interactions.select(usable.sum()).item()
    left_out |= {
        "interaction with an item that has no metadata or no title": num_usable - sold.height,
        f"interaction outside of the {k_core}-core": sold.height - core.height,
    }
    items = items.join(core.select("item_id").unique(), on="item_id", how="semi", maintain_order="left")
    unusable = interactions.filter(~usable)  # for the cleaning to list
    counted = {reason: count for reason, count in left_out.items() if count}
    return Tables(pl.concat([core, unusable]), items, rejected=pl.concat([bad, bad_items]), left_out=counted)


def _ratings_csv(path: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    content = read_bytes(path)
    if b"user_id" in content.split(b"\n", 1)[0]:
        frame, bad = read_csv(content, path.name)
        frame = frame.rename({"parent_asin": "item_id"} if "parent_asin" in frame.columns else {})
    else:
        frame, bad = read_csv(content, path.name, columns=["item_id", "user_id", "rating", "timestamp"])
    if missing := [c for c in ("user_id", "item_id", "rating", "timestamp") if c not in frame.columns]:
        raise DataError(f"{path} has no column {missing[0]!r}; it has: {', '.join(frame.columns)}")
    return _seconds(frame.select(ROW, "user_id", "item_id", "rating", "timestamp")), bad


def _reviews(path: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    names = (("user_id", "reviewerID"), ("parent_asin", "asin"), ("rating", "overall"), ("timestamp", "unixReviewTime"))
    numbered, bad = _json_lines(path)
    rows = [(number, *(_text(row.get(new, row.get(old))) for new, old in names)) for number, row in numbered]
    schema = [ROW, "user_id", "item_id", "rating", "timestamp"]
    frame = pl.DataFrame(rows, schema={ROW: pl.Int64, **dict.fromkeys(schema[1:], pl.String)}, orient="row")
    return _seconds(frame), bad


def _text(value: Any) -> str | None:
    """A JSON value as text: cells of any type are judged where all data is cleaned."""
    return None if value is None else str(value).encode("utf-8", "replace").decode()


def _seconds(frame: pl.DataFrame) -> pl.DataFrame:
    """Timestamps in milliseconds (2023) as seconds; what is no number stays for the cleaning to judge."""
    time = pl.col("timestamp").cast(pl.Float64, strict=False)
    seconds = (time / 1000).floor().cast(pl.Int64, strict=False).cast(pl.String)
    return frame.with_columns(timestamp=pl.when(time >= _MILLISECONDS_FROM).then(seconds).otherwise(pl.col("timestamp")))


def _items(path: Path) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, int]]:
    """(items with a title, lines that are none, what was left out: reason -> count)."""
    rows, (numbered, bad) = [], _json_lines(path)
    for number, row in numbered:
        text, categories = row.get("description") or "", row.get("categories") or row.get("category") or []
        rows.append(
            {
                ROW: number,
                "item_id": _text(row.get("parent_asin") or row.get("asin")),
                "title": _text(row.get("title")) or "",
                "text": _text(" ".join(map(str, text)) if isinstance(text, list) else text),
                "categories": [_text(c) for c in (categories if isinstance(categories, list) else [categories])],
            }
        )
    schema = {ROW: pl.Int64, "item_id": pl.String, "title": pl.String, "text": pl.String, "categories": pl.List(pl.String)}
    found = pl.DataFrame(rows, schema=schema)
    once = found.unique("item_id", keep="first", maintain_order=True)
    titled = once.filter(pl.col("title") != "")
    left_out = {"item named a second time": found.height - once.height, "item without a title": once.height - titled.height}
    return titled, bad, left_out


def _k_core(interactions: pl.DataFrame, k: int) -> pl.DataFrame:
    """Drop users and items with fewer than `k` interactions until none is left."""
    while True:
        kept = interactions.filter((pl.len().over("user_id") >= k) & (pl.len().over("item_id") >= k))
        if kept.height == interactions.height:
            return kept
        interactions = kept


def _json_lines(path: Path) -> tuple[list[tuple[int, dict[str, Any]]], pl.DataFrame]:
    """(line number, object) of every line that is one, and the lines that are not."""
    good, bad = [], []
    for number, line in enumerate(lines(path), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            good.append((number, row))
        elif line.strip():
            bad.append(number)
    return good, rejected(path.name, bad, "not a JSON object")
