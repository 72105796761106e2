"""The dataset folder: good rows kept, bad rows set aside with their number and reason, too many of them refused."""

from __future__ import annotations

import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from foundation import content
from foundation.artifact import Artifact, Draft, make
from recommender.cleaning import write_dataset
from recommender.data import QUARANTINE, DataError, Tables, load_dataset, read_parquet, read_tables

ITEMS = pl.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"]})


def clean(folder: Path, interactions: dict | pl.DataFrame, items: pl.DataFrame = ITEMS, threshold: float = 1.0) -> Artifact:
    """The dataset that cleaning leaves."""
    tables = Tables(pl.DataFrame(interactions), items)
    build = lambda draft: write_dataset(tables, draft, threshold)  # noqa: E731
    return make(folder / "dataset", "dataset", recipe={}, inputs={}, build=build)


def aside(artifact: Artifact) -> dict[int, str]:
    """Row -> reason."""
    return dict(pl.read_parquet(artifact.file(QUARANTINE)).select("row", "reason").rows())


def test_bad_rows_are_set_aside(tmp_path: Path) -> None:
    rows = {
        "user_id": ["u", None, "u", " ", "u", "u", "u", "u", "u\x01", "\ufffd"],
        "item_id": ["a", "a", "zzz", "b", None, "b", "b", "b", "b", "b"],
        "timestamp": [1, 2, 3, 4, 5, None, -7, 1_700_000_000_000, 1, 1],
    }
    artifact = clean(tmp_path, rows)
    assert load_dataset(artifact).interactions.select("user_id", "item_id").rows() == [("u", "a")]
    assert aside(artifact) == {
        2: "user_id is missing",
        3: "item_id is not in items.parquet",
        4: "user_id is missing",
        5: "item_id is missing",
        6: "no timestamp where other rows have one",
        7: "timestamp is negative",
        8: "timestamp is after the year 9999 (seconds are expected; are these milliseconds?)",
        9: "user_id holds control characters",
        10: "user_id is not valid UTF-8",
    }
    assert sum(artifact.metrics["quarantined"].values()) == 9


def test_too_many_bad_rows_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"1 of 4 rows are malformed .*interactions.parquet row 2.*max_quarantined_fraction = 0.1"
    ):
        clean(tmp_path, {"user_id": ["u", "u"], "item_id": ["a", "q"]}, threshold=0.1)
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize("misspelt", ["userid", "user", "User_ID"])
def test_misspelt_column_names_the_nearest(tmp_path: Path, misspelt: str) -> None:
    with pytest.raises(DataError, match=rf"no column 'user_id'.*did you mean '{misspelt}'"):
        clean(tmp_path, {misspelt: ["u"], "item_id": ["a"]})


def test_a_misspelt_optional_column_is_not_silently_ignored(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'timestmp'; did you mean 'timestamp'"):
        clean(tmp_path, {"user_id": ["u"], "item_id": ["a"], "timestmp": [1]})


def test_ids_become_strings_and_unknown_columns_are_dropped(tmp_path: Path) -> None:
    artifact = clean(tmp_path, {"user_id": [7], "item_id": ["a"], "colour": ["red"]})
    assert load_dataset(artifact).interactions.row(0, named=True) == {"user_id": "7", "item_id": "a", "timestamp": None}


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("user_id", [1.0]),
        ("user_id", [[1]]),
        ("item_id", [True]),
        ("timestamp", [[1]]),
        ("timestamp", [True]),
        ("rating", [b"5"]),
    ],
)
def test_a_column_of_a_type_that_never_fits_is_refused(tmp_path: Path, column: str, values: list) -> None:
    with pytest.raises(DataError, match=f"column '{column}' holds .*; convert it before the import"):
        clean(tmp_path, {"user_id": ["u"], "item_id": ["a"]} | {column: values})


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["1", " 2 ", "3.0", "1e3"], [1, 2, 3, 1000]),
        ([1.9, 2.0, 3.5, 4.0], [1, 2, 3, 4]),
        ([9_007_199_254_740_993 // 10**6, 2, 3, 4], [9_007_199_254, 2, 3, 4]),
        (["9007199254", "007", "-0", "+5"], [9007199254, 7, 0, 5]),
    ],
)
def test_timestamps_are_read_from_numbers_and_texts(tmp_path: Path, given: list, kept: list) -> None:
    artifact = clean(tmp_path, {"user_id": list("uvwx"), "item_id": ["a"] * 4, "timestamp": given}, threshold=0.0)
    assert load_dataset(artifact).interactions["timestamp"].to_list() == kept


@pytest.mark.parametrize("bad", ["x", "1.0.0", "inf", "1e300", "9" * 30, "0x10", "1,000"])
def test_a_timestamp_that_is_none_sets_the_row_aside(tmp_path: Path, bad: str) -> None:
    artifact = clean(tmp_path, {"user_id": ["u", "v"], "item_id": ["a", "a"], "timestamp": ["1", bad]})
    assert aside(artifact) == {2: "timestamp is not a whole number"}


def test_a_cell_the_row_can_do_without_is_emptied(tmp_path: Path) -> None:
    items = pl.DataFrame(
        {
            "item_id": ["a", "b", "c"],
            "title": ["A", None, "C"],
            "year": ["1995", "soon", ""],
            "features": [[1.0, 2.0], [np.nan, 1.0], None],
        }
    )
    artifact = clean(tmp_path, {"user_id": ["u", "u"], "item_id": ["a", "b"], "rating": ["4.5", "good"]}, items, threshold=0.0)
    loaded = load_dataset(artifact)
    assert loaded.items["year"].to_list() == [1995, None, None]
    assert loaded.items["features"].to_list() == [[1.0, 2.0], None, None]
    assert loaded.interactions["rating"].to_list() == [4.5, None]
    assert artifact.metrics["mended"] == {
        "features emptied: it cannot be read as its type": 1,
        "rating emptied: it cannot be read as its type": 1,
        "title is missing": 1,
        "year emptied: it cannot be read as its type": 1,
    }
    assert artifact.metrics["quarantined"] == {}


def test_texts_lose_control_characters_and_entities(tmp_path: Path) -> None:
    items = pl.DataFrame(
        {
            "item_id": ["a", "b", "c", "d", "e"],
            "title": ["Tom &amp; Jerry", "nul\0l", "AT&T; x", "plain", "caf\ufffd"],
            "categories": [["&lt;b&gt;", "Q&#38;A"], [], None, ["ok"], ["\ufffd"]],
        }
    )
    artifact = clean(tmp_path, {"user_id": ["u"], "item_id": ["a"]}, items, threshold=0.0)
    loaded = load_dataset(artifact).items
    assert loaded["title"].to_list() == ["Tom & Jerry", "nul l", "AT&T; x", "plain", "caf\ufffd"]
    assert loaded["categories"].to_list() == [["<b>", "Q&A"], [], None, ["ok"], ["\ufffd"]]
    listed = pl.read_parquet(artifact.file(QUARANTINE)).select("row", "ids", "reason").sort("reason", "row").rows()
    assert listed == [
        (5, "e", "categories is not valid UTF-8, its bad bytes were replaced"),
        (1, "a", "categories: control characters or HTML entities taken out"),
        (5, "e", "title is not valid UTF-8, its bad bytes were replaced"),
        (1, "a", "title: control characters or HTML entities taken out"),
        (2, "b", "title: control characters or HTML entities taken out"),
    ]
    assert sum(artifact.metrics["mended"].values()) == 5


def test_a_row_that_is_the_same_as_an_earlier_one_is_set_aside(tmp_path: Path) -> None:
    """Taken twice at different times is a repeat, which the split knows how to treat; without times nobody can tell."""
    rows = {"user_id": ["u"] * 4, "item_id": ["a", "a", "a", "b"], "timestamp": [1, 1, 2, 1]}
    artifact = clean(tmp_path, rows)
    assert load_dataset(artifact).interactions["timestamp"].to_list() == [1, 2, 1]
    assert aside(artifact) == {2: "the same as an earlier row"}
    del rows["timestamp"]
    assert clean(tmp_path / "no times", rows).metrics["num_interactions"] == 4


def test_ids_that_collide_after_stripping_keep_the_first(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": ["a", "a ", "b"], "title": ["first", "second", None]})
    artifact = clean(tmp_path, {"user_id": ["u", " u"], "item_id": ["a", " a"]}, items)
    assert load_dataset(artifact).items["title"].to_list() == ["first", ""]
    assert aside(artifact) == {2: "item_id repeated", 3: "title is missing"}
    assert artifact.metrics["num_users"] == 1
    assert artifact.metrics["num_repeats"] == 1


def test_dates_become_seconds(tmp_path: Path) -> None:
    artifact = clean(tmp_path, {"user_id": ["u"], "item_id": ["a"], "timestamp": [datetime(1970, 1, 2)]})
    assert load_dataset(artifact).interactions["timestamp"].to_list() == [86400]


@pytest.mark.parametrize("rows", [{"user_id": [None], "item_id": ["a"]}, {"user_id": [], "item_id": []}])
def test_nothing_left(tmp_path: Path, rows: dict) -> None:
    with pytest.raises(DataError, match="no usable interaction"):
        clean(tmp_path, rows)


def test_a_user_of_a_million_interactions(tmp_path: Path) -> None:
    count = 1_000_000
    rows = pl.DataFrame({"user_id": pl.repeat("u", count, eager=True), "item_id": pl.Series(["a", "b"] * (count // 2))})
    artifact = clean(tmp_path, rows)
    assert artifact.metrics["num_repeats"] == count - 2


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1", b"user_id,item_id\nu,a\n"])
def test_a_file_that_is_no_parquet(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "interactions.parquet").write_bytes(content)
    with pytest.raises(DataError, match="is not a readable Parquet file"):
        read_parquet(tmp_path / "interactions.parquet")


def test_a_parquet_header_that_lies_about_a_size_does_not_end_the_process(tmp_path: Path) -> None:
    path = tmp_path / "interactions.parquet"
    pl.DataFrame({"user_id": ["u"] * 4}).write_parquet(path, compression="uncompressed", statistics=False)
    content = path.read_bytes()
    num_values = b"\x2c\x15\x08"  # DataPageHeader, its first field, 4 as a zigzag varint
    assert content.count(num_values) == 1
    path.write_bytes(content.replace(num_values, b"\x2c\x15\x17"))  # -12
    with pytest.raises(DataError, match="is not a readable Parquet file"):
        read_parquet(path)


def test_a_folder_with_a_pattern_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "year=2024[1]*"
    folder.mkdir()
    interactions = pl.DataFrame({"user_id": ["u"], "item_id": ["a"]})
    interactions.write_parquet(folder / "interactions.parquet")
    ITEMS.write_parquet(folder / "items.parquet")
    assert read_tables(folder).interactions.equals(interactions)
    artifact = make(
        folder / "dataset", "dataset", recipe={}, inputs={}, build=lambda draft: write_dataset(read_tables(folder), draft, 0.0)
    )
    assert load_dataset(artifact).interactions["item_id"].to_list() == ["a"]


def test_a_folder_without_its_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no interactions\.parquet"):
        read_tables(tmp_path)


def test_an_optional_table_needs_its_columns(tmp_path: Path) -> None:
    tables = Tables(pl.DataFrame({"user_id": ["u"], "item_id": ["a"]}), ITEMS, {"kg.parquet": pl.DataFrame({"head": ["x"]})})
    with pytest.raises(DataError, match=r"kg.parquet has no column 'relation'"):
        write_dataset(tables, Draft(tmp_path / "draft"), 1.0)


def test_a_dataset_someone_else_wrote_is_checked(tmp_path: Path) -> None:
    def build(draft: Draft) -> None:
        pl.DataFrame({"user_id": ["u"], "item_id": ["x"], "timestamp": [1]}).write_parquet(draft.path / "interactions.parquet")
        ITEMS.write_parquet(draft.path / "items.parquet")

    artifact = make(tmp_path / "dataset", "dataset", recipe={}, inputs={}, build=build)
    with pytest.raises(ValueError, match=r"cannot be read as 'dataset'.*misses one that was interacted with"):
        load_dataset(artifact)


@pytest.mark.parametrize(
    ("said", "code", "error"),
    [
        ("memory allocation of 1520 bytes failed", -6, DataError),  # within the bound that any table is given
        ("<jemalloc>: background thread creation failed (11)", 1, MemoryError),
        ("", -9, MemoryError),
        ("memory allocation of 2305843009213693952 bytes failed", -6, DataError),
        ("file metadata is damaged", 1, DataError),
        ("", -11, DataError),
    ],
)
def test_why_a_parquet_file_could_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, code: int, error: type[Exception]
) -> None:
    def ended(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], code, "", said)

    monkeypatch.setattr(subprocess, "run", ended)
    (tmp_path / "x.parquet").touch()
    with pytest.raises(error):
        read_parquet(tmp_path / "x.parquet")


def test_a_parquet_file_may_not_unpack_without_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "interactions.parquet"
    pl.DataFrame({"user_id": pl.zeros(100_000_000, pl.Int64, eager=True)}).write_parquet(path)
    monkeypatch.setattr(content, "_TABLE_FREE_BYTES", 1 << 30)
    monkeypatch.setattr(content, "_TABLE_RATIO", 1)
    with pytest.raises(DataError, match=r"needs more than 1 GiB when read; it is refused"):
        read_parquet(path)


def test_what_a_process_may_not_have_is_no_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "interactions.parquet"
    pl.DataFrame({"user_id": pl.zeros(100_000_000, pl.Int64, eager=True)}).write_parquet(path)
    monkeypatch.setattr(content.resource, "getrlimit", lambda which: (1 << 30, 1 << 30))
    with pytest.raises(MemoryError):
        read_parquet(path)


def test_a_column_of_our_own_name_is_no_row_number(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "__row__": ["x"]}).write_parquet(tmp_path / "interactions.parquet")
    ITEMS.write_parquet(tmp_path / "items.parquet")
    assert read_tables(tmp_path).interactions.columns == ["user_id", "item_id"]


def test_what_stopped_an_import_is_listed_until_it_succeeds(tmp_path: Path) -> None:
    def build(threshold: float) -> Any:
        rows = pl.DataFrame({"user_id": ["u", "", "v"], "item_id": ["a", "a", "zz"]})
        return lambda draft: write_dataset(Tables(rows, ITEMS), draft, threshold)

    with pytest.raises(DataError, match=r"data-refused/quarantine.parquet lists them"):
        make(tmp_path / "data", "dataset", recipe={}, inputs={}, build=build(0.1))
    listed = pl.read_parquet(tmp_path / "data-refused" / QUARANTINE)
    assert listed.select("row", "reason").rows() == [(2, "user_id is missing"), (3, "item_id is not in items.parquet")]
    make(tmp_path / "data", "dataset", recipe={}, inputs={}, build=build(1.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
