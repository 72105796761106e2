"""RecBole atomic files (`NAME.inter`, `.item`, `.kg`, `.link`, `.user`): tab-separated, header cells are `name:type`.

https://recbole.io/docs/user_guide/data/atomic_files.html

The source is their folder, or one `.inter` file with the `.item` file named by `items`. A line of interactions is one of them,
or, with a column `item_id_list`, a whole history in its order and the item after it.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import polars as pl

from recommender.data import ROW, DataError, Tables
from recommender.importers.delimited import read_csv

_HISTORY = "item_id_list"
_OPTIONAL_FILES = {"kg.parquet": "kg", "item_entity.parquet": "link", "users.parquet": "user"}
_RENAMED = {"head_id": "head", "relation_id": "relation", "tail_id": "tail", "entity_id": "entity"}
_TITLE_NAMES = ("title", "movie_title", "name", "item_name")
_CATEGORY_NAMES = ("class", "genre", "categories", "category")
_YEAR_NAMES = ("release_year", "year")


def read(source: Path, items: str | None = None) -> Tables:
    """Every atomic file of the folder `source`, or the `.inter` file `source` with the `.item` file `items` (path or URL)."""
    from recommender.importers import locate

    if source.is_file() and items is None:
        raise DataError(f"{source} is one file; name its .item file by data.options.items, or give the folder of both")
    interactions, bad = _read_atomic(source if source.is_file() else _only(source, "inter"))
    if _HISTORY in interactions.columns:
        interactions = _unrolled(interactions, source)
    items_found, bad_items = _read_atomic(locate(items) if items else _only(source, "item"))
    extra, listed = {}, [bad, bad_items]
    for name, suffix in _OPTIONAL_FILES.items():
        if source.is_dir() and any(source.glob(f"*.{suffix}")):
            frame, bad_lines = _read_atomic(_only(source, suffix))
            extra[name] = frame.drop(ROW).rename({theirs: ours for theirs, ours in _RENAMED.items() if theirs in frame.columns})
            listed.append(bad_lines)
    return Tables(interactions, _items(items_found), extra, pl.concat(listed))


def _unrolled(histories: pl.DataFrame, source: Path) -> pl.DataFrame:
    """An interaction a row, of lines that hold a user's history and the item after it."""
    if lacking := {"user_id", "item_id"}.difference(histories.columns):
        raise DataError(f"{source} has a column {_HISTORY!r} and no column {min(lacking)!r}")
    if histories["user_id"].drop_nulls().is_duplicated().any():
        raise DataError(
            f"{source} names a user twice: it holds histories cut off at several places, to train on; "
            "take the file with the whole ones (NAME.test.inter)"
        )
    history = pl.col(_HISTORY).fill_null("").str.split(" ")
    whole = pl.concat_list(history.list.filter(pl.element() != ""), "item_id")
    return histories.select(ROW, "user_id", item_id=whole).explode("item_id")


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
