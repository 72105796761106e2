"""Importers, each on a small source in its published layout."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import polars as pl
import pytest

from foundation.artifact import Artifact, Draft, make
from foundation.recipe import load_recipe
from recdistill.recipe import Recipe
from recommender.cleaning import write_dataset
from recommender.data import DataError, load_dataset
from recommender.importers import read
from recommender.split import build_sequences


def imported(folder: Path, importer: str, source: Path | str, options: dict | None = None, threshold: float = 0.0) -> Artifact:
    """The dataset an import leaves."""

    def build(draft: Draft) -> None:
        write_dataset(read(importer, str(source), options or {}), draft, threshold)

    return make(folder / "dataset", "dataset", recipe={}, inputs={}, build=build)


def quarantine(artifact: Artifact) -> list[tuple]:
    """(table, row, ids, reason) of everything set aside or emptied."""
    return pl.read_parquet(artifact.file("quarantine.parquet")).rows()


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
    artifact = imported(tmp_path / "out", "recbole", tmp_path)
    dataset = load_dataset(artifact)
    assert dataset.interactions["timestamp"].to_list() == [881250949, 881250950]
    assert dataset.items.row(0, named=True) == {
        "item_id": "i1",
        "title": '"Quoted',
        "categories": ["Drama", "War"],
        "year": 1995,
    }
    assert pl.read_parquet(artifact.file("kg.parquet")).columns == ["head", "relation", "tail"]
    assert pl.read_parquet(artifact.file("item_entity.parquet")).columns == ["item_id", "entity"]


SEQUENCES = "user_id:token\titem_id_list:token_seq\titem_id:token\n"


def test_recbole_lines_may_hold_whole_histories(tmp_path: Path) -> None:
    nobody = "\ti1\ti2\n" * 2  # two lines without a user are no user named twice
    (tmp_path / "x.test.inter").write_text(f"{SEQUENCES}u\ti2 i1\ti3\nv\t\ti1\nw\ti1\t\n{nobody}")
    (tmp_path / "x.item").write_text("item_id:token\ttitle:token_seq\ni1\tA\ni2\tB\ni3\tC\n")
    options = {"items": str(tmp_path / "x.item")}
    artifact = imported(tmp_path / "out", "recbole", tmp_path / "x.test.inter", options, threshold=0.5)
    assert load_dataset(artifact).interactions.select("user_id", "item_id").rows() == [
        ("u", "i2"),
        ("u", "i1"),
        ("u", "i3"),
        ("v", "i1"),
        ("w", "i1"),
    ]
    rows = [row[1] for row in quarantine(artifact)]
    assert rows == [3, 4, 4, 5, 5]  # w's last item has no name, and the last two lines no user


def test_recbole_histories_to_train_on_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.inter").write_text(f"{SEQUENCES}u\ti2\ti1\nu\ti2 i1\ti3\n")
    (tmp_path / "x.item").write_text("item_id:token\ttitle:token_seq\ni1\tA\n")
    with pytest.raises(DataError, match=r"names a user twice.*whole ones"):
        read("recbole", str(tmp_path), {})


def test_recbole_one_file_needs_the_other(tmp_path: Path) -> None:
    (tmp_path / "x.inter").write_text("user_id:token\titem_id:token\nu\ti1\n")
    with pytest.raises(DataError, match=r"data\.options\.items"):
        read("recbole", str(tmp_path / "x.inter"), {})


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
    tables = load_dataset(imported(tmp_path, "movielens", tmp_path / "ml.zip"))
    assert tables.items.row(0, named=True) == {"item_id": "10", "title": "Été", "year": 1995, "categories": ["Drama", "War"]}
    assert tables.items.row(1, named=True)["title"] == "No year"
    assert tables.interactions["item_id"].to_list() == ["10", "20"]
    assert tables.interactions["timestamp"].to_list() == [978300760, 978300761]


def test_movielens_one_line_in_another_encoding_spoils_no_other(tmp_path: Path) -> None:
    movies = "10::Été (1995)::Drama\n".encode() + "20::Année (1996)::Drama\n".encode("latin-1") + b"30::(1999)::Comedy\n"
    with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
        archive.writestr("ratings.dat", "1::10::5::1\n1::20::5::2\n1::30::5::3\n")
        archive.writestr("movies.dat", movies)
    items = load_dataset(imported(tmp_path, "movielens", tmp_path / "ml.zip")).items
    assert items["title"].to_list() == ["Été", "Année", "(1999)"]


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
    tables = load_dataset(imported(tmp_path, "amazon", source, {"metadata": metadata, "k_core": 3}))
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
    loaded = load_dataset(imported(tmp_path, "table", tmp_path / "clicks.csv", options))
    assert loaded.interactions["timestamp"].to_list() == [1704153600, 1704240000]
    assert loaded.items["categories"].to_list() == [["x", "y"], None]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2024-01-02", 1704153600),
        ("2024-01-02 01:00", 1704157200),
        ("2024-01-02T00:00:01.5Z", 1704153601),
        ("1704153600", 1704153600),
        ("01/02/2020", None),
        ("2024-01-02T00:00:00+02:00", None),
        ("2024-13-02", None),
    ],
)
def test_table_times(tmp_path: Path, text: str, seconds: int | None) -> None:
    (tmp_path / "clicks.csv").write_text(f"user_id,item_id,timestamp\nu,a,{text}\nu,b,7\n")
    kept = load_dataset(imported(tmp_path, "table", tmp_path / "clicks.csv", threshold=1.0)).interactions["timestamp"]
    assert kept.to_list() == [7] if seconds is None else [seconds, 7]


def test_recbole_lines_of_optional_tables_are_listed(tmp_path: Path) -> None:
    (tmp_path / "x.inter").write_text("user_id:token\titem_id:token\nu\ti1\n")
    (tmp_path / "x.item").write_text("item_id:token\ttitle:token_seq\ni1\tA\n")
    (tmp_path / "x.kg").write_text("head_id:token\trelation_id:token\ttail_id:token\nbroken\tline\n")
    artifact = imported(tmp_path / "out", "recbole", tmp_path, threshold=1.0)
    assert quarantine(artifact) == [("x.kg", 1, "", "not 3 cells")]
    (tmp_path / "y.kg").write_text("")
    with pytest.raises(DataError, match=r"exactly one \.kg file"):
        read("recbole", str(tmp_path), {})


def test_amazon_rows_that_cannot_be_used_do_not_count_for_the_core(tmp_path: Path) -> None:
    rows = [{"user_id": f"u{i}", "parent_asin": "B0", "rating": 5, "timestamp": i} for i in range(2)]
    rows += [{"user_id": None, "parent_asin": "B0", "timestamp": 1}, {"user_id": "\ud800", "parent_asin": "B0", "timestamp": 5}]
    (tmp_path / "reviews.json").write_text("\n".join(map(json.dumps, rows)))
    metadata = amazon_metadata(tmp_path, "parent_asin")
    artifact = imported(tmp_path, "amazon", tmp_path / "reviews.json", {"metadata": metadata, "k_core": 1}, threshold=1.0)
    assert load_dataset(artifact).interactions["user_id"].to_list() == ["u0", "u1", "?"]
    assert quarantine(artifact)[0] == ("interactions.parquet", 3, " B0", "user_id is missing")


def test_table_without_items_and_mistakes(tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").write_text("user_id,item_id\nu,b\nu,a\n")
    assert read("table", str(tmp_path / "clicks.csv"), {}).items["title"].to_list() == ["b", "a"]
    mapped = read("table", str(tmp_path / "clicks.csv"), {"columns": {"item_id": "user_id"}})
    assert mapped.interactions["item_id"].to_list() == ["u", "u"]
    with pytest.raises(DataError, match="no column 'sku'"):
        read("table", str(tmp_path / "clicks.csv"), {"columns": {"item_id": "sku"}})
    with pytest.raises(DataError, match="colunms"):
        read("table", str(tmp_path / "clicks.csv"), {"colunms": {}})
    for wrong in ("abc", {"item_id": 1}, {"item_id": "item_id", "user_id": "item_id"}):
        with pytest.raises(DataError, match=r"data\.options\.columns"):
            read("table", str(tmp_path / "clicks.csv"), {"columns": wrong})
    with pytest.raises(DataError, match="neither an existing path"):
        read("table", str(tmp_path / "none.csv"), {})


def test_malformed_lines_of_a_csv_are_listed_with_their_row(tmp_path: Path) -> None:
    lines = [
        b"user_id,item_id,timestamp",
        b"u1,a,1",
        b"u1,b",
        b"u1,b,2,9",
        b"\xff,a,3",
        b"u1,\xc3\xa9,4",
        b"u2,a,soon",
        b"u3,a\0,5",
    ]
    (tmp_path / "clicks.csv").write_bytes(b"\n".join(lines))
    artifact = imported(tmp_path, "table", tmp_path / "clicks.csv", threshold=1.0)
    assert load_dataset(artifact).interactions.rows() == [("u1", "a", 1), ("u1", "é", 4)]
    assert quarantine(artifact) == [
        ("clicks.csv", 2, "", "not 3 cells"),
        ("clicks.csv", 3, "", "not 3 cells"),
        ("interactions.parquet", 4, "\ufffd a", "user_id is not valid UTF-8"),
        ("interactions.parquet", 6, "u2 a", "timestamp is not a whole number"),
        ("interactions.parquet", 7, "u3 a\0", "item_id holds control characters"),
        ("items.parquet", 3, "a\0", "item_id holds control characters"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"user_id,item_id,timestamp\n", "no usable interaction is left"),
        (b"user_id,user_id\nu,a\n", "names a column twice"),
        (b'user_id,item_id\nu,"a\nu,b\n', "cannot be read as delimited text"),
        (b"user_id;item_id\nu;a\n", "no column 'item_id'"),
        (b"\xff\xfe\0\0", "no column"),
    ],
)
def test_a_csv_that_is_none(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "clicks.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        imported(tmp_path, "table", tmp_path / "clicks.csv", threshold=1.0)
    assert not (tmp_path / "dataset").exists()


def test_malformed_json_lines_are_listed_with_their_number(tmp_path: Path) -> None:
    rows = [json.dumps({"user_id": f"u{i}", "parent_asin": "B0", "rating": 5, "timestamp": i}) for i in range(3)]
    odd = ["{", "[1]", "[" * 50_000, '{"user_id": ["u"], "parent_asin": "B0", "rating": "high", "timestamp": 3}', ""]
    (tmp_path / "reviews.json").write_text("\n".join([*rows, *odd]))
    metadata = amazon_metadata(tmp_path, "parent_asin")
    artifact = imported(tmp_path, "amazon", tmp_path / "reviews.json", {"metadata": metadata, "k_core": 1}, threshold=1.0)
    assert load_dataset(artifact).interactions.height == 4
    assert [entry[1:] for entry in quarantine(artifact)] == [
        (4, "", "not a JSON object"),
        (5, "", "not a JSON object"),
        (6, "", "not a JSON object"),
        (7, "['u'] B0", "rating emptied: it cannot be read as its type"),
        (1, "B0", "title: control characters or HTML entities taken out"),
    ]


def test_hostile_archives_are_refused(tmp_path: Path) -> None:
    bomb, encrypted, link, truncated = (tmp_path / f"{name}.zip" for name in ("bomb", "encrypted", "link", "truncated"))
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ratings.csv", b"\0" * (64 << 20))
    with pytest.raises(DataError, match="unpacks to"):
        read("movielens", str(bomb), {})
    with zipfile.ZipFile(link, "w") as archive:
        entry = zipfile.ZipInfo("ratings.csv")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(DataError, match="is a link"):
        read("movielens", str(link), {})
    with zipfile.ZipFile(truncated, "w") as archive:
        archive.writestr("ratings.csv", "userId,movieId,rating,timestamp\n" * 100)
    content = bytearray(truncated.read_bytes())
    content[60] ^= 0xFF
    truncated.write_bytes(content)
    with pytest.raises(DataError, match="not a readable zip"):
        read("movielens", str(truncated), {})
    content = bytearray(link.read_bytes())
    encrypted.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="not a readable zip"):
        read("movielens", str(encrypted), {})
    with gzip.open(tmp_path / "meta.json.gz", "wb") as stream:
        stream.write(b"\0" * (64 << 20))
    (tmp_path / "reviews.json").write_text("")
    with pytest.raises(DataError, match=r"unpacks to|more than 16 MiB"):
        read("amazon", str(tmp_path / "reviews.json"), {"metadata": str(tmp_path / "meta.json.gz")})
    (tmp_path / "half.json.gz").write_bytes((tmp_path / "meta.json.gz").read_bytes()[:-100])
    with pytest.raises(DataError, match=r"damaged|more than 16 MiB"):
        read("amazon", str(tmp_path / "half.json.gz"), {"metadata": str(tmp_path / "half.json.gz")})


@pytest.mark.network
def test_ml_100k_out_of_its_wheel() -> None:
    tables = read("recbole", "ml-100k", {})
    assert (tables.interactions.height, tables.items.height, tables.extra["kg.parquet"].height) == (100_000, 1682, 91_631)


@pytest.mark.network
def test_games_is_the_set_that_was_measured(tmp_path: Path) -> None:
    recipe = load_recipe(Recipe, Path("recipes/amazon18-games.toml"))
    sequences = build_sequences(load_dataset(imported(tmp_path, "recbole", recipe.data.source, recipe.data.options, 0.01)))
    measured = json.loads(Path("docs/results/distill-amazon18-games.json").read_text())
    assert sequences.targets_sha256() == measured["targets_sha256"]
