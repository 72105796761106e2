"""RecBole atomic files (`NAME.inter`, `.item`, `.kg`, `.link`, `.user`): tab-separated, header cells are `name:type`.

https://recbole.io/docs/user_guide/data/atomic_files.html
"""

from __future__ import annotations

import difflib
from pathlib import Path

import polars as pl

from recommender.data import ROW, DataError, Tables
from recommender.importers.delimited import read_csv

_OPTIONAL_FILES = {"kg.parquet": "kg", "item_entity.parquet": "link", "users.parquet": "user"}
_RENAMED = {"head_id": "head", "relation_id": "relation", "tail_id": "tail", "entity_id": "entity"}
_TITLE_NAMES = ("title", "movie_title", "name", "item_name")
_CATEGORY_NAMES = ("class", "genre", "categories", "category")
_YEAR_NAMES = ("release_year", "year")


def read(source: Path) -> Tables:
    """Read every atomic file of the folder `source`."""
    interactions, bad = _read_atomic(_only(source, "inter"))
    items, bad_items = _read_atomic(_only(source, "item"))
    extra, listed = {}, [bad, bad_items]
    for name, suffix in _OPTIONAL_FILES.items():
        if any(source.glob(f"*.{suffix}")):
            frame, bad_lines = _read_atomic(_only(source, suffix))
            extra[name] = frame.drop(ROW).rename({theirs: ours for theirs, ours in _RENAMED.items() if theirs in frame.columns})
            listed.append(bad_lines)
    return Tables(interactions, _items(items), extra, pl.concat(listed))


def _items(raw: pl.DataFrame) -> pl.DataFrame:
    title = _first(raw, _TITLE_NAMES)
    if title is None:
        raise DataError(
            f"the .item file has no title column (looked for {', '.join(_TITLE_NAMES)}; it has {', '.join(raw.columns)})"
        )
    columns = [pl.col(name) for name in (ROW, "item_id") if name in raw.columns] + [pl.col(title).alias("title")]
    if category := _first(raw, _CATEGORY_NAMES):
        columns.append(pl.col(category).fill_null("").str.split(" ").alias("categories"))
    if year := _first(raw, _YEAR_NAMES):
        columns.append(pl.col(year).alias("year"))
    return raw.select(columns)


def _first(frame: pl.DataFrame, names: tuple[str, ...]) -> str | None:
    """The column of one of these names; one that is misspelt is an error, so that it is not ignored without a word."""
    found = next((name for name in names if name in frame.columns), None)
    close = [c for c in frame.columns if difflib.get_close_matches(c, names, n=1, cutoff=0.8)]
    if found is None and close:
        raise DataError(f"the .item file has a column {close[0]!r}; did you mean one of {', '.join(names)}?")
    return found


def _only(folder: Path, suffix: str) -> Path:
    found = list(folder.glob(f"*.{suffix}"))
    if len(found) != 1:
        raise DataError(f"{folder} must hold exactly one .{suffix} file, it holds {len(found)}")
    return found[0]


def _read_atomic(path: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    frame, bad = read_csv(path, path.name, separator="\t", quoted=False)
    return frame.rename({name: name.split(":")[0] for name in frame.columns if name != ROW}), bad
