"""Importers, each on a small source in its published layout."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import polars as pl
import pytest

from foundation.artifact import Draft
from recommender.data import DataError, load_dataset, write_dataset
from recommender.importers import read


def test_recbole(tmp_path: Path) -> None:
    (tmp_path / "x.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\nu\ti1\t3\t881250949\nu\ti2\t5\t881250950\n"
    )
    (tmp_path / "x.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        'i1\t"Quoted\t1995\tDrama War\ni2\tB\t\tComedy\n'
    )
    (tmp_path / "x.kg").write_text("head_id:token\trelation_id:token\ttail_id:token\nm.1\tr\tm.2\n")
    (tmp_path / "x.link").write_text("item_id:token\tentity_id:token\ni1\tm.1\n")
    tables = read("recbole", str(tmp_path), {})
    assert tables.interactions["timestamp"].to_list() == [881250949, 881250950]
    assert tables.items.row(0, named=True) == {
        "item_id": "i1",
        "title": '"Quoted',
        "categories": ["Drama", "War"],
        "year": 1995,
    }
    assert tables.extra["kg.parquet"].columns == ["head", "relation", "tail"]
    assert tables.extra["item_entity.parquet"].columns == ["item_id", "entity"]


MOVIELENS = {
    "ml-1m": {
        "ratings.dat": "1::10::5::978300760\n1::20::3::978300761\n",
        "movies.dat": "10::Été (1995)::Drama|War\n20::No year::Comedy\n",
    },
    "ml-20m": {
        "ratings.csv": "userId,movieId,rating,timestamp\n1,10,5.0,978300760\n1,20,3.5,978300761\n",
        "movies.csv": 'movieId,title,genres\n10,"Été (1995)",Drama|War\n20,No year,Comedy\n',
    },
    "ml-100k": {
        "u.data": "1\t10\t5\t978300760\n1\t20\t3\t978300761\n",
        "u.genre": "Comedy|0\nDrama|1\nWar|2\n\n",
        "u.item": "10|Été (1995)|01-Jan-1995||http://x|0|1|1\n20|No year|||http://y|1|0|0\n",
    },
}


@pytest.mark.parametrize("layout", MOVIELENS)
def test_movielens(tmp_path: Path, layout: str) -> None:
    encoding = "utf-8" if layout == "ml-20m" else "latin-1"
    with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
        for name, text in MOVIELENS[layout].items():
            archive.writestr(f"{layout}/{name}", text.encode(encoding))
    tables = read("movielens", str(tmp_path / "ml.zip"), {})
    assert tables.items.row(0, named=True) == {"item_id": "10", "title": "Été", "year": 1995, "categories": ["Drama", "War"]}
    assert tables.items.row(1, named=True)["title"] == "No year"
    assert tables.interactions["item_id"].to_list() == ["10", "20"]
    assert tables.interactions["timestamp"].to_list() == [978300760, 978300761]


def test_movielens_refuses_other_zips(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("readme", "?")
    with pytest.raises(DataError, match="no MovieLens zip"):
        read("movielens", str(tmp_path / "x.zip"), {})
    (tmp_path / "y.zip").write_text("not a zip")
    with pytest.raises(DataError, match="not a readable zip"):
        read("movielens", str(tmp_path / "y.zip"), {})


def amazon_metadata(folder: Path, key: str) -> str:
    rows = [{key: f"B{i}", "title": f"Game &amp; {i}", "description": ["fun"], "category": ["Games"]} for i in range(3)]
    rows += [{key: "B9", "title": ""}, rows[0]]
    with gzip.open(folder / "meta.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    return str(folder / "meta.jsonl.gz")


@pytest.mark.parametrize("form", ["2018 csv", "2018 json", "2023 csv", "2023 json"])
def test_amazon(tmp_path: Path, form: str) -> None:
    taken = [(f"A{u}", f"B{i}", 5.0, 1_500_000_000 + i) for u in range(3) for i in range(3)] + [("A7", "B0", 1.0, 1)]
    year, kind = form.split()
    scale = 1000 if year == "2023" else 1
    source = tmp_path / ("ratings.csv" if kind == "csv" else "reviews.json.gz")
    if kind == "csv":
        header = "user_id,parent_asin,rating,timestamp\n" if year == "2023" else ""
        order = (lambda u, i: f"{u},{i}") if year == "2023" else (lambda u, i: f"{i},{u}")
        source.write_text(header + "".join(f"{order(u, i)},{r},{t * scale}\n" for u, i, r, t in taken))
    else:
        names = (
            ("user_id", "parent_asin", "rating", "timestamp")
            if year == "2023"
            else ("reviewerID", "asin", "overall", "unixReviewTime")
        )
        with gzip.open(source, "wt") as stream:
            stream.writelines(json.dumps(dict(zip(names, (u, i, r, t * scale), strict=True))) + "\n" for u, i, r, t in taken)
    metadata = amazon_metadata(tmp_path, "parent_asin" if year == "2023" else "asin")
    tables = read("amazon", str(source), {"metadata": metadata, "k_core": 3})
    assert tables.interactions.height == 9
    assert set(tables.interactions["user_id"]) == {"A0", "A1", "A2"}
    assert sorted(tables.interactions["timestamp"].unique()) == [1_500_000_000, 1_500_000_001, 1_500_000_002]
    assert tables.items["title"].to_list() == ["Game & 0", "Game & 1", "Game & 2"]


def test_table_with_column_mapping(tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").write_text("customer,sku,when\nu1,7,2024-01-02T00:00:00\nu1,8,2024-01-03T00:00:00\n")
    pl.DataFrame({"sku": ["7", "8"], "name": ["seven", "eight"], "tags": ["x|y", None]}).write_parquet(
        tmp_path / "products.parquet"
    )
    options = {
        "columns": {"user_id": "customer", "item_id": "sku", "timestamp": "when"},
        "items": str(tmp_path / "products.parquet"),
        "item_columns": {"item_id": "sku", "title": "name", "categories": "tags"},
    }
    draft = Draft(tmp_path / "out")
    draft.path.mkdir()
    write_dataset(read("table", str(tmp_path / "clicks.csv"), options), draft, 0.0)
    loaded = load_dataset(draft.path)
    assert loaded.interactions["timestamp"].to_list() == [1704153600, 1704240000]
    assert loaded.items["categories"].to_list() == [["x", "y"], None]


def test_table_without_items_and_mistakes(tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").write_text("user_id,item_id\nu,b\nu,a\n")
    assert read("table", str(tmp_path / "clicks.csv"), {}).items["title"].to_list() == ["b", "a"]
    mapped = read("table", str(tmp_path / "clicks.csv"), {"columns": {"item_id": "user_id"}})
    assert mapped.interactions["item_id"].to_list() == ["u", "u"]
    with pytest.raises(DataError, match="no column 'sku'"):
        read("table", str(tmp_path / "clicks.csv"), {"columns": {"item_id": "sku"}})
    with pytest.raises(DataError, match="colunms"):
        read("table", str(tmp_path / "clicks.csv"), {"colunms": {}})
    with pytest.raises(DataError, match="neither an existing path"):
        read("table", str(tmp_path / "none.csv"), {})


@pytest.mark.network
def test_ml_100k_out_of_its_wheel() -> None:
    tables = read("recbole", "ml-100k", {})
    assert (tables.interactions.height, tables.items.height, tables.extra["kg.parquet"].height) == (100_000, 1682, 91_631)
