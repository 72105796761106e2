"""Importers: one file, one source format, one `read(source, **options) -> Tables`."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from foundation import fetch
from foundation.archive import ArchiveError
from foundation.artifact import sha256_file
from foundation.recipe import Contradiction, check_options
from recommender.config import IMPORTER_OPTIONS
from recommender.data import DataError, Tables, read_tables

METHODS = {
    "recbole": "recommender.importers.recbole",
    "movielens": "recommender.importers.movielens",
    "amazon": "recommender.importers.amazon",
    "table": "recommender.importers.table",
}


# Options that name a file of their own: their content shapes the dataset as the source's does.
SOURCE_OPTIONS = {"recbole": ("items",), "table": ("items",), "amazon": ("metadata",)}


def read(importer: str, source: str, options: Mapping[str, Any]) -> Tables:
    """Raw tables from `source` (an asset's name, a path or a URL) by the importer's rules."""
    if not source:
        raise DataError("data.source is empty; name an asset, a path or a URL")
    try:
        check_options(IMPORTER_OPTIONS[importer], options, "data.options")
    except Contradiction as error:
        raise DataError(str(error)) from None
    path = locate(source)
    try:
        if importer == "folder":
            return read_tables(path)
        return importlib.import_module(METHODS[importer]).read(path, **options)
    except ArchiveError as error:
        raise DataError(str(error)) from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise DataError(f"{source}: {str(error).splitlines()[0]}") from None


def locate(source: str) -> Path:
    """Local path of an asset's name, a URL or a path."""
    if source in fetch.ASSETS:
        return fetch.fetch(source)
    if source.startswith(("http://", "https://")):
        return fetch.fetch_url(source)
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(f"{source!r} is neither an existing path, a URL, nor an asset ({', '.join(sorted(fetch.ASSETS))})")
    return path


def source_digests(importer: str, source: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Digests of everything an import reads, for the key that decides whether it must be done again."""
    others = {name: options[name] for name in SOURCE_OPTIONS.get(importer, ()) if name in options}
    return {name: source_digest(str(value)) for name, value in {"source": source, **others}.items()}


def source_digest(source: str) -> str:
    """What identifies the content of `source`: an asset's pinned digest, or the sha256 of the file or of a folder's files."""
    if source in fetch.ASSETS:
        asset = fetch.ASSETS[source]
        return asset.digest if isinstance(asset, fetch.UrlAsset) else f"sha256:{asset.sha256}"
    path = locate(source)
    if path.is_file():
        return f"sha256:{sha256_file(path)}"
    listing = "".join(f"{sha256_file(file)}  {file.name}\n" for file in sorted(path.iterdir()) if file.is_file())
    return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"
