"""Every parser (data, recipes, artefacts, archives, reports) on what hypothesis makes up: a named error or a clean result.

Never a traceback. `make torture` runs the same properties for 100,000 cases (RECDISTILL_FUZZ_CASES is the number for each).
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from benchmark.compare import ReportError, compare, to_text
from benchmark.gate import prove
from benchmark.gate.revision import UsageError
from foundation.archive import ArchiveError, lines, open_zip, read_bytes, read_member
from foundation.artifact import MANIFEST, ArtifactError, Draft, load
from foundation.content import ContentError, check_content
from foundation.recipe import RecipeError, load_recipe
from recdistill.recipe import Recipe
from recommender.cleaning import write_dataset
from recommender.data import DataError, Dataset, Tables
from recommender.importers import read
from recommender.split import build_sequences

CASES = int(os.environ.get("RECDISTILL_FUZZ_CASES", "0"))  # 0: a few, the same in every run
FUZZ = settings(
    max_examples=CASES or 40, derandomize=not CASES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
SLOW_FUZZ = settings(FUZZ, max_examples=min(CASES, 500) or 8)  # a process for each case
TEXTS = st.text(max_size=12) | st.sampled_from(
    ["", " ", "a", "a ", "1", "-1", "1e9", "nan", "\0", "é", "\ufffd", '"', "&amp;", "::"]
)
IDS = st.sampled_from(["a", "b", "c", " a", "", "1", "01"]) | TEXTS
VALUES: Any = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | TEXTS
SHIPPED = [path.read_text() for path in sorted(Path("recipes").glob("*.toml"))]


def one_line(error: Exception) -> None:
    if not str(error).strip() or len(str(error).splitlines()) != 1:
        pytest.fail(f"not one line: {error!r}")


def clean(tables: Tables) -> None:
    """Clean, and check what is left against its own promises."""
    with tempfile.TemporaryDirectory() as folder:
        draft = Draft(Path(folder))
        try:
            write_dataset(tables, draft, 1.0)
        except DataError as error:
            one_line(error)
            return
        interactions, items = (pl.read_parquet(draft.path / f"{name}.parquet") for name in ("interactions", "items"))
        assert set(interactions["item_id"]) <= set(items["item_id"])
        assert items["item_id"].is_unique().all()
        for ids in (interactions["user_id"], interactions["item_id"], items["item_id"]):
            assert ids.null_count() == 0
            assert all(text and text == text.strip() and not any(ord(c) < 32 or ord(c) == 127 for c in text) for text in ids)
        if interactions["timestamp"].count():
            assert interactions["timestamp"].null_count() == 0
            assert interactions["timestamp"].min() >= 0  # type: ignore[operator]
        assert draft.metrics["num_interactions"] == interactions.height
        aside = sum(draft.metrics["quarantined"].values())
        total = tables.interactions.height + tables.items.height + tables.rejected.height
        assert interactions.height + items.height + aside == total
        sequences = build_sequences(Dataset(interactions, items))
        assert len(sequences.items) == interactions.height - draft.metrics["num_repeats"]
        assert len(sequences.items) == 0 or (sequences.items.min() >= 1 and sequences.items.max() <= items.height)
        json.dumps(draft.metrics, allow_nan=False)


def imported(importer: str, source: Path, **options: Any) -> None:
    try:
        tables = read(importer, str(source), options)
    except DataError as error:
        one_line(error)
        return
    clean(tables)


def columns(names: list[str]) -> Any:
    """A frame with some of `names` (and others), each column of one type of values."""
    kinds = [IDS, st.integers(-10, 2**62), st.floats(), VALUES, st.lists(TEXTS, max_size=3), st.lists(st.floats(), max_size=3)]
    kinds += [st.none() | IDS, st.booleans(), st.binary(max_size=4), st.dates(), st.datetimes()]
    height = st.shared(st.integers(0, 8), key="height")
    column = height.flatmap(lambda n: st.sampled_from(kinds).flatmap(lambda kind: st.lists(kind, min_size=n, max_size=n)))
    return st.dictionaries(st.sampled_from([*names, "colour"]), column, max_size=len(names)).map(frame)


def frame(columns: dict[str, list]) -> pl.DataFrame:
    made = {}
    for name, values in columns.items():
        try:
            made[name] = pl.Series(name, values, strict=False)
        except (TypeError, OverflowError, ValueError, pl.exceptions.PolarsError):
            made[name] = pl.Series(name, [str(value) for value in values])
    return pl.DataFrame(made)


GOOD_ITEMS = pl.DataFrame({"item_id": ["a", "b", "c", "1"], "title": ["A", "B", "C", "1"]})


@FUZZ
@given(
    columns(["user_id", "item_id", "timestamp", "rating", "event"]),
    columns(["item_id", "title", "year", "categories", "features"]),
)
def test_any_frames(interactions: pl.DataFrame, items: pl.DataFrame) -> None:
    clean(Tables(interactions, items))
    clean(Tables(interactions, GOOD_ITEMS))


ROWS = st.lists(st.tuples(IDS, IDS, VALUES, VALUES), max_size=8)


@FUZZ
@given(ROWS, st.sampled_from([",", "\t", ";"]), st.binary(max_size=20), st.integers(0, 400))
def test_any_csv(rows: list, separator: str, noise: bytes, at: int) -> None:
    text = "\n".join(separator.join(map(str, row)) for row in [("user_id", "item_id", "timestamp", "rating"), *rows])
    content = text.encode("utf-8", "surrogatepass")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clicks.csv"
        path.write_bytes(content[:at] + noise + content[at:])
        imported("table", path, separator=separator)


@FUZZ
@given(st.binary(max_size=400))
def test_any_bytes_as_a_csv(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "clicks.csv").write_bytes(content)
        imported("table", Path(folder) / "clicks.csv")


@SLOW_FUZZ
@given(st.binary(max_size=400))
def test_any_bytes_as_a_parquet(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "clicks.parquet").write_bytes(content)
        imported("table", Path(folder) / "clicks.parquet")


@SLOW_FUZZ
@given(st.integers(0, 10**6), st.integers(1, 255), st.booleans())
def test_a_damaged_parquet(at: int, flip: int, cut: bool) -> None:
    stream = io.BytesIO()
    pl.DataFrame({"user_id": ["u", "v"], "item_id": ["a", "b"], "timestamp": [1, 2]}).write_parquet(stream)
    content = bytearray(stream.getvalue())
    at %= len(content)
    content[at] ^= flip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clicks.parquet"
        path.write_bytes(content[:at] if cut else content)
        imported("table", path)


@FUZZ
@given(ROWS, st.lists(st.tuples(IDS, TEXTS, VALUES), max_size=5), st.sampled_from([b"", b"\xff", b"\t", b"\n\n"]))
def test_any_recbole(rows: list, items: list, noise: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tables = {
            "x.inter": [("user_id:token", "item_id:token", "timestamp:float", "rating:float"), *rows],
            "x.item": [("item_id:token", "movie_title:token_seq", "release_year:token"), *items],
        }
        for name, table in tables.items():
            text = "\n".join("\t".join(map(str, row)) for row in table)
            (Path(folder) / name).write_bytes(text.encode("utf-8", "surrogatepass") + noise)
        imported("recbole", Path(folder))


@FUZZ
@given(
    st.sampled_from(["::", "csv", "100k"]), ROWS, st.lists(st.tuples(IDS, TEXTS), max_size=5), st.none() | st.integers(0, 2000)
)
def test_any_movielens(layout: str, rows: list, items: list, damage: int | None) -> None:
    separator = {"::": "::", "csv": ",", "100k": "\t"}[layout]
    ratings = "\n".join(separator.join(map(str, row)) for row in rows)
    files = {
        "::": {"ratings.dat": ratings, "movies.dat": "\n".join(f"{i}::{t}::x|y" for i, t in items)},
        "csv": {
            "ratings.csv": f"userId,movieId,rating,timestamp\n{ratings}",
            "movies.csv": "movieId,title,genres\n" + "\n".join(f"{i},{t},x" for i, t in items),
        },
        "100k": {"u.data": ratings, "u.genre": "x|0\n", "u.item": "\n".join(f"{i}|{t}|d||u|1" for i, t in items)},
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files[layout].items():
            archive.writestr(f"ml/{name}", text.encode("utf-8", "surrogatepass"))
    content = bytearray(stream.getvalue())
    if damage is not None:
        content[damage % len(content)] ^= 0x55
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "ml.zip").write_bytes(content)
        imported("movielens", Path(folder) / "ml.zip")


JSON: Any = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=5
)
REVIEW = st.fixed_dictionaries({}, optional=dict.fromkeys(("user_id", "parent_asin", "rating", "timestamp"), IDS | JSON))
PRODUCT = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("parent_asin", "title", "description", "categories"), IDS | JSON | st.lists(TEXTS))
)


@FUZZ
@given(st.lists(REVIEW | JSON, max_size=6), st.lists(PRODUCT | JSON, max_size=6), st.none() | st.integers(0, 500))
def test_any_amazon(reviews: list, products: list, cut: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, metadata = Path(folder) / "reviews.json", Path(folder) / "meta.json.gz"
        source.write_text("\n".join(map(json.dumps, reviews)), encoding="utf-8", errors="replace")
        packed = gzip.compress("\n".join(map(json.dumps, products)).encode("utf-8", "replace"))
        metadata.write_bytes(packed if cut is None else packed[:cut])
        imported("amazon", source, metadata=str(metadata), k_core=1)


def recipe_is_read_or_refused(text: str, overrides: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.toml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            recipe = load_recipe(Recipe, path, overrides)
        except RecipeError:
            return
        for section in (recipe.student, recipe.teacher, recipe.text):
            values = [value for value in section.model_dump().values() if isinstance(value, float)]
            assert np.isfinite(values).all()
        json.dumps(recipe.model_dump(mode="json"), allow_nan=False)


def dotted(values: dict[str, Any], prefix: str = "") -> list[str]:
    return [
        name
        for key, value in values.items()
        for name in (dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key])
    ]


KEYS = sorted({key for text in SHIPPED for key in dotted(tomllib.loads(text))} | {"student", "seeds.0", "distill.objectives.x"})
TOML_VALUES = st.one_of(
    VALUES.map(lambda value: json.dumps(value) if not isinstance(value, float) else str(value)),
    st.sampled_from(["[]", "{}", "[1, 2]", "inf", "nan", "1979-05-27", "'x'", "[[1]]", "{a = 1}", "0x10", "1_000", ""]),
    TEXTS,
)


@FUZZ
@given(st.lists(st.tuples(st.sampled_from(KEYS) | TEXTS, TOML_VALUES), max_size=4))
def test_any_override(overrides: list[tuple[str, str]]) -> None:
    recipe_is_read_or_refused(SHIPPED[0].replace('base = "ml-100k.toml"', ""), [f"{key}={value}" for key, value in overrides])


@FUZZ
@given(st.sampled_from(SHIPPED), st.integers(0, 3000), st.integers(0, 20), TEXTS)
def test_any_change_of_a_recipe(text: str, at: int, length: int, new: str) -> None:
    at %= len(text)
    recipe_is_read_or_refused((text[:at] + new + text[at + length :]).replace('base = "ml-100k.toml"', ""), [])


@FUZZ
@given(
    st.text(max_size=200) | st.lists(st.tuples(TEXTS, TOML_VALUES)).map(lambda rows: "\n".join(f"{k} = {v}" for k, v in rows))
)
def test_any_text_as_a_recipe(text: str) -> None:
    recipe_is_read_or_refused(text, [])


@FUZZ
@given(st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_manifest(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MANIFEST).write_bytes(content)
        with pytest.raises(ArtifactError):
            load(folder)


def is_accepted_or_refused(name: str, content: bytes) -> None:
    """By the check of what an artefact may hold."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            check_content(path)
        except ContentError as error:
            one_line(error)


def damaged(content: bytes, at: int, flip: int, cut: bool) -> bytes:
    at %= len(content)
    return content[:at] if cut else content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :]


DAMAGE = (st.integers(0, 10**6), st.integers(1, 255), st.booleans())
TENSORS = save({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float16), "c": np.arange(3)})
GRAPH = onnx.parser.parse_model(
    """<ir_version: 10, opset_import: ["" : 21]>
    g (int64[B, L] history) => (int64[B, L] out) <float[2] w = {1.0, 2.0}, int64 one = {1}> { out = Add(history, one) }"""
).SerializeToString()


@FUZZ
@given(st.sampled_from(["x.safetensors", "x.onnx", "x.json", "x.txt", "x.engine"]), st.binary(max_size=400))
def test_any_bytes_in_an_artefact(name: str, content: bytes) -> None:
    is_accepted_or_refused(name, content)


@FUZZ
@given(*DAMAGE)
def test_damaged_weights(at: int, flip: int, cut: bool) -> None:
    is_accepted_or_refused("x.safetensors", damaged(TENSORS, at, flip, cut))


@FUZZ
@given(*DAMAGE)
def test_a_damaged_graph(at: int, flip: int, cut: bool) -> None:
    is_accepted_or_refused("x.onnx", damaged(GRAPH, at, flip, cut))


@FUZZ
@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]) | TEXTS, JSON, max_size=3), st.binary(max_size=40))
def test_any_header_of_weights(header: dict, data: bytes) -> None:
    text = json.dumps(header).encode()
    is_accepted_or_refused("x.safetensors", len(text).to_bytes(8, "little") + text + data)


@FUZZ
@given(st.sampled_from(["x.gz", "x.zip"]), st.none() | st.tuples(*DAMAGE), st.binary(max_size=300))
def test_any_archive(name: str, damage: tuple | None, content: bytes) -> None:
    if damage is not None:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a", content)
        content = damaged(stream.getvalue() if name == "x.zip" else gzip.compress(content), *damage)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            if name == "x.gz":
                assert read_bytes(path) == b"".join(lines(path))
            else:
                with open_zip(path) as archive:
                    for member in archive.namelist():
                        read_member(archive, member)
        except ArchiveError as error:
            one_line(error)


REPORT = {
    "schema_version": 1,
    "rows": [
        {
            "variant": "student",
            "status": "ok",
            "ndcg_at_10": 0.1,
            "ndcg_at_10_ci95": [0.09, 0.11],
            "latency_p50_s": 0.001,
            "peak_rss_bytes": 1,
        }
    ],
    "targets_sha256": "0" * 64,
    "environment": {"cpu": "x", "versions": {"python": "3.11"}},
}
RUN = {"slowdown": 0.0, "budget": 1.05, "hog": False, "verdict": "PASS", "seconds": 1.0, "groups": 5, "faster": False}
RUN |= {"ratios": {"latency_p50": 1.0, "throughput_time": 1.0}, "counted": {"peak_rss": 1.0}, "reason": "", "hardware": "a PC"}
RUN |= {"naive_ratio": 1.0}


def test_what_is_whole_is_accepted(tmp_path: Path) -> None:
    """Else what is damaged would be refused for the wrong reason."""
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    assert compare(tmp_path / "report.json", tmp_path / "report.json")["variants"]["student"]["ndcg_at_10"] == 1.0
    (tmp_path / "gate.json").write_text(json.dumps({"gate_sha256": "x", "runs": [RUN]}))
    assert prove._begin(tmp_path / "gate.json", "x")["runs"] == [RUN]


def changed(document: Any, key: int, value: Any) -> Any:
    """The document with another value at one of its places."""
    places = [
        (holder, name) for holder in holders(document) for name in (holder if isinstance(holder, dict) else range(len(holder)))
    ]
    holder, name = places[key % len(places)]
    holder[name] = value
    return document


def holders(value: Any) -> list[Any]:
    if not isinstance(value, dict | list):
        return []
    inner = value.values() if isinstance(value, dict) else value
    return [value, *(found for entry in inner for found in holders(entry))]


@FUZZ
@given(st.integers(0, 100), JSON)
def test_any_report(key: int, value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one, other = Path(folder) / "one.json", Path(folder) / "other.json"
        one.write_text(json.dumps(changed(copy.deepcopy(REPORT), key, value)))
        other.write_text(json.dumps(REPORT))
        for pair in ((one, other), (other, one)):
            try:
                to_text(compare(*pair))
            except ReportError as error:
                one_line(error)


@FUZZ
@given(st.integers(0, 100), JSON)
def test_any_ledger_of_the_gate(key: int, value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gate.json"
        path.write_text(json.dumps(changed({"gate_sha256": "x", "runs": [dict(RUN)]}, key, value)))
        try:
            prove.summary(prove._begin(path, "x")["runs"])
        except UsageError as error:
            one_line(error)
