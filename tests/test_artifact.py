"""Artefacts: whole or absent, reused only when nothing that made them has changed, refused when tampered with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foundation.artifact import MANIFEST, Artifact, ArtifactError, Draft, load, make


def build(draft: Draft) -> None:
    (draft.path / "model.bin").write_bytes(b"weights")
    draft.metrics["score"] = 0.5


def make_one(out: Path, recipe: dict | None = None, **options) -> Artifact:
    return make(
        out,
        "thing",
        recipe=recipe or {"size": 1},
        inputs=options.pop("inputs", {}),
        build=options.pop("build", build),
        **options,
    )


def test_made_then_reused(tmp_path: Path) -> None:
    first = make_one(tmp_path / "a")
    again = make_one(tmp_path / "a", build=lambda draft: pytest.fail("built again"))
    assert first.digest == again.digest
    assert again.metrics["score"] == 0.5


@pytest.mark.parametrize("change", [{"recipe": {"size": 2}}, {"seed": 3}])
def test_made_differently_is_refused_then_overwritten(tmp_path: Path, change: dict) -> None:
    old = make_one(tmp_path / "a")
    with pytest.raises(ArtifactError, match="--overwrite"):
        make_one(tmp_path / "a", **change)
    assert load(tmp_path / "a").digest == old.digest
    assert make_one(tmp_path / "a", overwrite=True, **change).digest != old.digest


def test_an_empty_table_in_a_recipe_counts(tmp_path: Path) -> None:
    make_one(tmp_path / "a", {"objectives": {"one": {}}})
    with pytest.raises(ArtifactError, match="objectives"):
        make_one(tmp_path / "a", {"objectives": {}})


def test_another_input_means_another_artefact(tmp_path: Path) -> None:
    make_one(tmp_path / "out", inputs={"source": make_one(tmp_path / "a")})
    with pytest.raises(ArtifactError, match="'source' has changed"):
        make_one(tmp_path / "out", inputs={"source": make_one(tmp_path / "b", {"size": 2})})


def test_digest_ignores_times(tmp_path: Path) -> None:
    assert make_one(tmp_path / "a").digest == make_one(tmp_path / "b").digest


def test_failed_build_leaves_nothing_under_the_final_name_and_can_go_on(tmp_path: Path) -> None:
    def interrupted(draft: Draft) -> None:
        (draft.checkpoint / "state").write_text("half")
        raise KeyboardInterrupt

    def resumed(draft: Draft) -> None:
        assert (draft.checkpoint / "state").read_text() == "half"
        build(draft)

    with pytest.raises(KeyboardInterrupt):
        make_one(tmp_path / "a", build=interrupted)
    assert not (tmp_path / "a").exists()
    artifact = make_one(tmp_path / "a", build=resumed)
    assert set(artifact.manifest["files"]) == {"model.bin"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_leftovers_of_another_recipe_are_not_resumed(tmp_path: Path) -> None:
    def interrupted(draft: Draft) -> None:
        (draft.checkpoint / "state").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_one(tmp_path / "a", build=interrupted)
    make_one(
        tmp_path / "a",
        {"size": 9},
        build=lambda draft: (build(draft), pytest.fail("resumed") if (draft.checkpoint / "state").exists() else None)[0],
    )


def test_failed_overwrite_keeps_the_old(tmp_path: Path) -> None:
    old = make_one(tmp_path / "a")

    def broken(draft: Draft) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        make_one(tmp_path / "a", {"size": 2}, build=broken, overwrite=True)
    assert load(tmp_path / "a").digest == old.digest


def test_tampering_is_refused(tmp_path: Path) -> None:
    artifact = make_one(tmp_path / "a")
    (tmp_path / "a" / "model.bin").write_bytes(b"WEIGHTS")
    with pytest.raises(ArtifactError, match="sha256"):
        load(artifact.path).verify()
    (tmp_path / "a" / "model.bin").unlink()
    with pytest.raises(ArtifactError, match="missing"):
        load(artifact.path).verify()


def test_extra_file_is_refused(tmp_path: Path) -> None:
    artifact = make_one(tmp_path / "a")
    (artifact.path / "extra").write_text("?")
    with pytest.raises(ArtifactError, match="does not name: extra"):
        artifact.verify()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema_version", 99, "update RecDistill"),
        ("files", {"../x": {"sha256": "", "bytes": 0}}, "outside"),
        ("kind", None, "needed here"),
    ],
)
def test_bad_manifest_is_refused(tmp_path: Path, field: str, value: object, message: str) -> None:
    artifact = make_one(tmp_path / "a")
    (artifact.path / MANIFEST).write_text(json.dumps(dict(artifact.manifest) | {field: value}))
    with pytest.raises(ArtifactError, match=message):
        load(artifact.path, "thing")


def test_not_an_artefact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not an artefact"):
        load(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        load(tmp_path)
