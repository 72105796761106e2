"""Delimited text as it comes: every cell a text, bytes that are no UTF-8 replaced, lines of another width listed."""

from __future__ import annotations

import csv
import io
import itertools
from pathlib import Path

import polars as pl

from foundation.archive import read_bytes
from recommender.data import ROW, DataError, rejected

_CHUNK_ROWS = 1 << 18
csv.field_size_limit(1 << 24)


def read_csv(
    source: Path | bytes, name: str, columns: list[str] | None = None, separator: str = ",", quoted: bool = True
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(rows with their number under `ROW`, lines that are no rows); `columns` names them where there is no header.

    Row 1 is the first after the header; an empty cell is null. Python's own reader is used: faster ones end at the first line
    of another width, or fill it up. A quote out of place is an error all the same: what follows it cannot be told apart.
    """
    content = io.BytesIO(source if isinstance(source, bytes) else read_bytes(source))
    text = io.TextIOWrapper(content, "utf-8-sig", "replace", newline="")
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    frames, bad, reader = [], [], None
    try:
        reader = csv.reader(text, delimiter=separator, quoting=quoting, strict=True)
        header = columns or next(reader, None)
        if not header or not any(header):
            raise DataError(f"{name} is empty; a table needs a line that names its columns")
        if len(set(header)) < len(header):
            raise DataError(f"{name} names a column twice: {', '.join(header)}")
        schema = {ROW: pl.Int64, **dict.fromkeys(header, pl.String)}
        numbered = enumerate(reader, 1)
        while chunk := list(itertools.islice(numbered, _CHUNK_ROWS)):
            good = [(number, *(cell or None for cell in cells)) for number, cells in chunk if len(cells) == len(header)]
            bad += [number for number, cells in chunk if cells and len(cells) != len(header)]
            frames.append(pl.DataFrame(good, schema=schema, orient="row"))
    except (csv.Error, TypeError) as error:  # TypeError: a separator that is no single character
        where = f", line {reader.line_num}" if reader else ""
        raise DataError(f"{name}{where} cannot be read as delimited text: {error}") from None
    return pl.concat([pl.DataFrame(schema=schema), *frames]), rejected(name, bad, f"not {len(header)} cells")
