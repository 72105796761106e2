"""MovieLens zips as GroupLens publishes them: ml-100k (u.data), ml-1m and ml-10m (`::` files), ml-20m and later (CSV).

https://grouplens.org/datasets/movielens/ ; use and cite, do not redistribute.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import polars as pl

from foundation.archive import open_zip, read_member
from recommender.data import ROW, DataError, Tables
from recommender.importers.delimited import read_csv

_TITLE_YEAR = r"^(.+?)\s*\((\d{4})\)\s*$"


def read(source: Path) -> Tables:
    """Read a MovieLens zip; the layout is recognised by its files."""
    with open_zip(source) as archive:
        names = {Path(name).name: name for name in archive.namelist()}
        if "ratings.csv" in names:
            (ratings, bad), (movies, bad_movies) = _csv(archive, names)
        elif "ratings.dat" in names:
            (ratings, bad), (movies, bad_movies) = _double_colon(archive, names)
        elif "u.data" in names:
            (ratings, bad), (movies, bad_movies) = _ml_100k(archive, names)
        else:
            raise DataError(f"{source} is no MovieLens zip: it has no ratings.csv, ratings.dat or u.data")
    items = movies.select(
        pl.col(ROW),
        pl.col("item_id"),
        title=pl.coalesce(pl.col("title").str.extract(_TITLE_YEAR, 1), pl.col("title")),
        year=pl.col("title").str.extract(_TITLE_YEAR, 2),
        categories=pl.col("genres").str.split("|"),
    )
    return Tables(ratings, items, rejected=pl.concat([bad, bad_movies]))


_Read = tuple[pl.DataFrame, pl.DataFrame]
_RATING_COLUMNS = ["user_id", "item_id", "rating", "timestamp"]


def _csv(archive: zipfile.ZipFile, names: dict[str, str]) -> tuple[_Read, _Read]:
    ratings, bad = read_csv(_member(archive, names, "ratings.csv"), "ratings.csv")
    movies, bad_movies = read_csv(_member(archive, names, "movies.csv"), "movies.csv")
    return (ratings.rename({"userId": "user_id", "movieId": "item_id"}), bad), (
        movies.rename({"movieId": "item_id"}),
        bad_movies,
    )


def _double_colon(archive: zipfile.ZipFile, names: dict[str, str]) -> tuple[_Read, _Read]:
    ratings = _fields(archive, names, "ratings.dat", "::", _RATING_COLUMNS)
    return ratings, _fields(archive, names, "movies.dat", "::", ["item_id", "title", "genres"])


def _ml_100k(archive: zipfile.ZipFile, names: dict[str, str]) -> tuple[_Read, _Read]:
    ratings = _fields(archive, names, "u.data", "\t", _RATING_COLUMNS)
    genres = [line.split("|")[0] for line in _member(archive, names, "u.genre").decode("latin-1").splitlines() if line.strip()]
    flags = [f"genre_{number}" for number in range(len(genres))]
    movies, bad = _fields(archive, names, "u.item", "|", ["item_id", "title", "release", "video_release", "url", *flags])
    labels = [pl.when(pl.col(flag) == "1").then(pl.lit(genre)) for flag, genre in zip(flags, genres, strict=True)]
    return ratings, (movies.with_columns(genres=pl.concat_str(labels, separator="|", ignore_nulls=True)), bad)


def _member(archive: zipfile.ZipFile, names: dict[str, str], name: str) -> bytes:
    if name not in names:
        raise DataError(f"{archive.filename} is no MovieLens zip: it has no {name}")
    return read_member(archive, names[name])


def _fields(archive: zipfile.ZipFile, names: dict[str, str], name: str, separator: str, columns: list[str]) -> _Read:
    """Lines split at a separator of any length, without quotes."""
    text = _decode(_member(archive, names, name))
    if len(separator) > 1:  # the one-character reader needs one that no title holds
        text = text.replace("\x1f", " ").replace(separator, "\x1f")
        separator = "\x1f"
    return read_csv(text.encode(), name, columns, separator, quoted=False)


def _decode(content: bytes) -> str:
    """UTF-8, or Latin-1, as in the older files, in the lines that are not."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return "\n".join(_decode(line) if b"\n" in content else line.decode("latin-1") for line in content.split(b"\n"))
