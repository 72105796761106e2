"""MovieLens zips as GroupLens publishes them: ml-100k (u.data), ml-1m and ml-10m (`::` files), ml-20m and later (CSV).

https://grouplens.org/datasets/movielens/ ; use and cite, do not redistribute.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import polars as pl

from recommender.data import DataError, Tables

_TITLE_YEAR = r"^(.*?)\s*\((\d{4})\)\s*$"


def read(source: Path) -> Tables:
    """Read a MovieLens zip; the layout is recognised by its files."""
    try:
        with zipfile.ZipFile(source) as archive:
            names = {Path(name).name: name for name in archive.namelist()}
            if "ratings.csv" in names:
                ratings, movies = _csv(archive, names)
            elif "ratings.dat" in names:
                ratings, movies = _double_colon(archive, names)
            elif "u.data" in names:
                ratings, movies = _ml_100k(archive, names)
            else:
                raise DataError(f"{source} is no MovieLens zip: it has no ratings.csv, ratings.dat or u.data")
    except zipfile.BadZipFile as error:
        raise DataError(f"{source} is not a readable zip ({error})") from None
    interactions = ratings.select(
        pl.col("user_id"),
        pl.col("item_id"),
        pl.col("timestamp").cast(pl.Int64),
        pl.col("rating").cast(pl.Float64),
    )
    items = movies.select(
        pl.col("item_id"),
        title=pl.coalesce(pl.col("title").str.extract(_TITLE_YEAR, 1), pl.col("title")),
        year=pl.col("title").str.extract(_TITLE_YEAR, 2).cast(pl.Int64),
        categories=pl.col("genres").str.split("|"),
    )
    return Tables(interactions, items, {})


def _csv(archive: zipfile.ZipFile, names: dict[str, str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    ratings = pl.read_csv(archive.read(names["ratings.csv"]), infer_schema=False).rename(
        {"userId": "user_id", "movieId": "item_id"}
    )
    movies = pl.read_csv(archive.read(names["movies.csv"]), infer_schema=False).rename({"movieId": "item_id"})
    return ratings, movies


def _double_colon(archive: zipfile.ZipFile, names: dict[str, str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    ratings = _fields(archive.read(names["ratings.dat"]), "::", ["user_id", "item_id", "rating", "timestamp"])
    movies = _fields(archive.read(names["movies.dat"]), "::", ["item_id", "title", "genres"])
    return ratings, movies


def _ml_100k(archive: zipfile.ZipFile, names: dict[str, str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    ratings = _fields(archive.read(names["u.data"]), "\t", ["user_id", "item_id", "rating", "timestamp"])
    genres = [line.split("|")[0] for line in archive.read(names["u.genre"]).decode("latin-1").splitlines() if line.strip()]
    flags = [f"genre_{number}" for number in range(len(genres))]
    movies = _fields(archive.read(names["u.item"]), "|", ["item_id", "title", "release", "video_release", "url", *flags])
    labels = [pl.when(pl.col(flag) == "1").then(pl.lit(genre)) for flag, genre in zip(flags, genres, strict=True)]
    return ratings, movies.with_columns(genres=pl.concat_str(labels, separator="|", ignore_nulls=True))


def _fields(content: bytes, separator: str, columns: list[str]) -> pl.DataFrame:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    rows = [re.split(re.escape(separator), line) for line in text.splitlines() if line]
    wrong = next((number for number, row in enumerate(rows, 1) if len(row) != len(columns)), None)
    if wrong is not None:
        raise DataError(f"line {wrong} has {len(rows[wrong - 1])} fields, expected {len(columns)} ({', '.join(columns)})")
    return pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")
