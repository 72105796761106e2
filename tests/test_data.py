"""The dataset folder: good rows kept, bad rows set aside with their number and reason, too many of them refused."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from foundation.artifact import Draft
from recommender.data import QUARANTINE, DataError, Tables, load_dataset, write_dataset

ITEMS = pl.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"]})


def clean(folder: Path, interactions: dict, items: pl.DataFrame = ITEMS, threshold: float = 1.0) -> Draft:
    draft = Draft(folder)
    write_dataset(Tables(pl.DataFrame(interactions), items, {}), draft, threshold)
    return draft


def test_bad_rows_are_set_aside(tmp_path: Path) -> None:
    rows = {
        "user_id": ["u", None, "u", " ", "u", "u"],
        "item_id": ["a", "a", "zzz", "b", None, "b"],
        "timestamp": [1, 2, 3, 4, 5, None],
    }
    draft = clean(tmp_path, rows)
    kept = load_dataset(tmp_path).interactions
    assert kept.select("user_id", "item_id").rows() == [("u", "a")]
    aside = pl.read_parquet(tmp_path / QUARANTINE)
    assert aside["row"].to_list() == [1, 2, 3, 4, 5]
    assert sum(draft.metrics["quarantined"].values()) == 5
    assert "interaction with an item that is not in items.parquet" in draft.metrics["quarantined"]


def test_too_many_bad_rows_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 4 rows are malformed .*max_quarantined_fraction = 0.1"):
        clean(tmp_path, {"user_id": ["u", "u"], "item_id": ["a", "q"]}, threshold=0.1)
    assert not list(tmp_path.iterdir())


def test_misspelt_column_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'user_id'.*did you mean 'userid'"):
        clean(tmp_path, {"userid": ["u"], "item_id": ["a"]})


def test_ids_become_strings_and_unknown_columns_are_dropped(tmp_path: Path) -> None:
    clean(tmp_path, {"user_id": [7], "item_id": ["a"], "colour": ["red"]})
    assert load_dataset(tmp_path).interactions.row(0, named=True) == {"user_id": "7", "item_id": "a", "timestamp": None}


def test_repeated_item_ids_keep_the_first(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": ["a", "a ", "b"], "title": ["first", "second", None]})
    clean(tmp_path, {"user_id": ["u"], "item_id": ["a"]}, items)
    assert load_dataset(tmp_path).items["title"].to_list() == ["first", ""]


def test_dates_become_seconds(tmp_path: Path) -> None:
    clean(tmp_path, {"user_id": ["u"], "item_id": ["a"], "timestamp": [datetime(1970, 1, 2)]})
    assert load_dataset(tmp_path).interactions["timestamp"].to_list() == [86400]


def test_nothing_left(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no usable interaction"):
        clean(tmp_path, {"user_id": [None], "item_id": ["a"]})
