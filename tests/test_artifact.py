"""Artefacts: whole or absent, reused only when nothing that made them has changed, refused when tampered with."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from foundation.artifact import MANIFEST, Artifact, ArtifactError, Draft, load, make, opens, sha256_file
from foundation.content import ContentError, check_content
from tests.faults import OPERATIONS, forge, killed_before

WEIGHTS = "model.safetensors"


def build(draft: Draft, value: float = 1.0) -> None:
    save_file({"weight": np.full(3, value, np.float32)}, draft.path / WEIGHTS)
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
    assert set(artifact.manifest["files"]) == {"model.safetensors"}
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
    (tmp_path / "a" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ArtifactError, match="sha256"):
        load(artifact.path).verify()
    (tmp_path / "a" / "model.safetensors").unlink()
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
        ("files", {"../x": {"sha256": "0" * 64, "bytes": 0}}, "outside"),
        ("files", {"/etc/passwd": {"sha256": "0" * 64, "bytes": 0}}, "outside"),
        ("files", {"x": {"sha256": "short", "bytes": 0}}, "files.x.sha256: String should match"),
        ("kind", "another", "needed here"),
        ("kind", None, "kind: Input should be a valid string"),
        ("seed", "0", "seed: Input should be a valid integer"),
        ("extra", 1, "Extra inputs are not permitted"),
        ("inputs", {"data": "0" * 64}, "does not name what it was made from"),
        ("ancestors", {"0" * 64: {"kind": "x"}}, "ancestors"),
    ],
)
def test_bad_manifest_is_refused(tmp_path: Path, field: str, value: object, message: str) -> None:
    artifact = make_one(tmp_path / "a")
    forge(artifact.path, {field: value})
    with pytest.raises(ArtifactError, match=message):
        load(artifact.path, "thing")


def test_not_an_artefact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not an artefact"):
        load(tmp_path)
    for text in ("{", "[]", "[" * 100_000, '{"metrics": NaN}', '{"metrics": 1e999}', "\xff"):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(ArtifactError, match=r"not valid JSON|Input should be"):
            load(tmp_path)


def test_a_changed_figure_is_refused(tmp_path: Path) -> None:
    artifact = make_one(tmp_path / "a")
    (artifact.path / MANIFEST).write_text((artifact.path / MANIFEST).read_text().replace("0.5", "0.9"))
    with pytest.raises(ArtifactError, match="does not match its own sha256"):
        load(artifact.path)


def test_every_ancestor_is_named_to_the_first(tmp_path: Path) -> None:
    first = make_one(tmp_path / "a")
    second = make_one(tmp_path / "b", {"size": 2}, inputs={"source": first})
    third = make_one(tmp_path / "c", {"size": 3}, inputs={"source": second}, seed=7)
    assert set(third.ancestors) == {first.digest, second.digest}
    assert third.ancestors[first.digest]["recipe"] == {"size": 1}
    assert third.ancestors[second.digest]["inputs"] == {"source": first.digest}
    forged = {digest: dict(entry) | {"seed": 1} for digest, entry in third.ancestors.items()}
    forge(third.path, {"ancestors": forged})
    with pytest.raises(ArtifactError, match="does not match its digest"):
        load(third.path)


@pytest.mark.parametrize("error", [MemoryError(), ImportError("x"), OSError(28, "full"), RuntimeError("can't allocate memory")])
def test_a_machine_that_lacks_something_does_not_condemn_the_artefact(tmp_path: Path, error: Exception) -> None:
    @opens
    def read(artifact: Artifact) -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        read(make_one(tmp_path / "a"))
    assert raised.value is error


@pytest.mark.parametrize("remake", [True, False])
def test_killed_again_and_again_while_replacing(tmp_path: Path, remake: bool) -> None:
    """What one kill leaves is no obstacle to the next run, wherever it came."""
    make_one(tmp_path / "a")
    for number in range(1, 60):
        recipe = {"size": 1} if remake else {"size": number}
        killed_before(number, lambda r=recipe: make_one(tmp_path / "a", r, overwrite=True, remake=remake))
        load(tmp_path / "a") if (tmp_path / "a").exists() else None
    make_one(tmp_path / "a", {"size": 100}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_onnx_graph_that_reads_another_file_is_refused(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    def save(node: onnx.NodeProto, **graph: object) -> Path:
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
        made = helper.make_graph([node], "g", [], [output], **graph)  # type: ignore[arg-type]
        path = tmp_path / "model.onnx"
        path.write_bytes(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString())
        return path

    external = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    external.ClearField("float_data")
    external.data_location = TensorProto.EXTERNAL
    external.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(ContentError, match="refers to another file"):
        check_content(save(helper.make_node("Identity", ["w"], ["y"]), initializer=[external]))
    with pytest.raises(ContentError, match="refers to another file"):
        check_content(save(helper.make_node("Constant", [], ["y"], value=external)))
    for broken in (float("nan"), float("inf")):
        with pytest.raises(ContentError, match="NaN or infinity"):
            check_content(save(helper.make_node("Constant", [], ["y"], value_floats=[broken])))
    check_content(save(helper.make_node("Constant", [], ["y"], value_floats=[1.0])))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_weights_that_are_not_finite_are_neither_written_nor_read(tmp_path: Path, value: float, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file

    def broken(draft: Draft) -> None:
        save_file({"ok": torch.ones(3), "w": torch.tensor([1.0, value]).to(getattr(torch, dtype))}, draft.path / WEIGHTS)

    with pytest.raises(ContentError, match="'w' holds NaN or infinity"):
        make_one(tmp_path / "a", build=broken)
    assert not (tmp_path / "a").exists()
    artifact = make_one(tmp_path / "b")
    save_file({"w": torch.tensor([1.0, value]).to(getattr(torch, dtype))}, artifact.path / WEIGHTS)
    forge(artifact.path)
    with pytest.raises(ArtifactError, match="'w' holds NaN or infinity"):
        load(artifact.path).file(WEIGHTS)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_eight_bit_floats_are_searched_for_nan(tmp_path: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file

    largest = torch.finfo(getattr(torch, dtype)).max
    save_file({"w": torch.tensor([largest, -largest]).to(getattr(torch, dtype))}, tmp_path / WEIGHTS)
    check_content(tmp_path / WEIGHTS)
    save_file({"w": torch.tensor([1.0, float("nan")]).to(getattr(torch, dtype))}, tmp_path / WEIGHTS)
    with pytest.raises(ContentError, match="'w' holds NaN or infinity"):
        check_content(tmp_path / WEIGHTS)


@pytest.mark.parametrize("name", ["weights.pkl", "pytorch_model.bin", "weights.pt", "code.py", "nameless"])
def test_formats_that_hold_code_are_neither_written_nor_read(tmp_path: Path, name: str) -> None:
    def broken(draft: Draft) -> None:
        (draft.path / name).write_bytes(pickle.dumps({}))

    with pytest.raises(ContentError, match="artefacts hold no"):
        make_one(tmp_path / "a", build=broken)
    artifact = make_one(tmp_path / "b")
    (artifact.path / name).write_bytes(pickle.dumps({}))
    path = artifact.path / name
    forge(artifact.path, {"files": {name: {"sha256": sha256_file(path), "bytes": path.stat().st_size}}})
    with pytest.raises(ArtifactError, match="artefacts hold no"):
        load(artifact.path).file(name)


@pytest.mark.parametrize("name", ["model.safetensors", "graph.onnx", "table.parquet", "index.json"])
@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"\xff" * 64, b"[" * 10_000])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ContentError, match=r"not a readable|not valid JSON"):
        check_content(tmp_path / name)


def test_links_are_not_followed(tmp_path: Path) -> None:
    artifact = make_one(tmp_path / "a")
    (artifact.path / WEIGHTS).rename(tmp_path / WEIGHTS)
    (artifact.path / WEIGHTS).symlink_to(tmp_path / WEIGHTS)
    with pytest.raises(ArtifactError, match="not a plain file"):
        load(artifact.path).file(WEIGHTS)


def test_killed_before_any_file_operation(tmp_path: Path) -> None:
    """At every operation in turn: the name holds the old or the new artefact, and the next run ends as an undisturbed one."""

    def build_two(draft: Draft) -> None:
        build(draft, 2.0)
        (draft.path / "sub").mkdir(exist_ok=True)
        (draft.path / "sub" / "index.json").write_text("{}")

    expected = make_one(tmp_path / "undisturbed", {"size": 2}, build=build_two).digest
    for number in range(1, 100):
        folder = tmp_path / str(number)
        old = make_one(folder / "a").digest
        killed = killed_before(number, lambda out=folder / "a": make_one(out, {"size": 2}, build=build_two, overwrite=True))
        if (folder / "a").exists():
            found = load(folder / "a")
            found.verify()
            assert found.digest in (old, expected)
        again = make_one(folder / "a", {"size": 2}, build=build_two, overwrite=True)
        again.verify()
        assert again.digest == expected
        assert [path.name for path in folder.iterdir()] == ["a"]
        if not killed:
            break
    else:
        pytest.fail("never lived to the end")
    assert number > 15


def test_interrupted_between_the_two_renames_the_old_comes_back(tmp_path: Path) -> None:
    old = make_one(tmp_path / "a")
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / "a").rename(tmp_path / ".a.partial" / "old")
    assert make_one(tmp_path / "a", build=lambda draft: pytest.fail("built again")).digest == old.digest
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    def slow(draft: Draft) -> None:
        with (tmp_path / "builds").open("a") as stream:
            stream.write("built\n")
        time.sleep(0.5)
        build(draft)

    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            try:
                make_one(tmp_path / "a", build=slow)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert (tmp_path / "builds").read_text() == "built\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "builds"]


def test_reuse_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a folder of artefacts that may only be read serves as well."""
    digest = make_one(tmp_path / "a").digest
    for module, name in OPERATIONS:
        monkeypatch.setattr(module, name, lambda *args, **kwargs: pytest.fail("wrote"))
    assert make_one(tmp_path / "a").digest == digest


def test_a_panic_of_a_library_is_an_error_with_a_name(tmp_path: Path) -> None:
    from polars.exceptions import PanicException

    @opens
    def read(artifact: Artifact) -> None:
        raise PanicException("called `Option::unwrap()` on a `None` value")

    @opens
    def interrupted(artifact: Artifact) -> None:
        raise KeyboardInterrupt

    artifact = make_one(tmp_path / "a")
    with pytest.raises(ArtifactError, match="PanicException"):
        read(artifact)
    with pytest.raises(KeyboardInterrupt):
        interrupted(artifact)


def test_a_read_that_fails_names_the_artefact(tmp_path: Path) -> None:
    @opens
    def read(artifact: Artifact) -> np.ndarray:
        return load_file(artifact.file(WEIGHTS))["absent"]

    with pytest.raises(ArtifactError, match=r"a cannot be read as 'thing' \(KeyError: 'absent'\)"):
        read(make_one(tmp_path / "a"))
