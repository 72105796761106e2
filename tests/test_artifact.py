"""Artefacts: whole or absent, reused only when nothing that made them has changed, refused when tampered with."""

from __future__ import annotations

import os
import pickle
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import foundation.artifact as store
from foundation.artifact import MANIFEST, Artifact, ArtifactError, Draft, load, make, opens, sha256_file
from foundation.content import ContentError, check_content
from foundation.failure import is_machine_error
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


def test_unfinished_work_of_another_recipe_is_not_dropped_unasked(tmp_path: Path) -> None:
    def interrupted(draft: Draft) -> None:
        (draft.checkpoint / "state").write_text("half")
        raise KeyboardInterrupt

    def not_resumed(draft: Draft) -> None:
        assert not (draft.checkpoint / "state").exists()
        build(draft)

    with pytest.raises(KeyboardInterrupt):
        make_one(tmp_path / "a", build=interrupted)
    with pytest.raises(ArtifactError, match=r"unfinished run made differently \(size: 1 there, 9 now\).*--overwrite"):
        make_one(tmp_path / "a", {"size": 9})
    assert (tmp_path / ".a.partial" / "checkpoint" / "state").read_text() == "half"
    make_one(tmp_path / "a", {"size": 9}, build=not_resumed, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("key", [b"", b"[]", b"{}", b"{", b'{"kind": "thing"}'])
def test_leftovers_that_nobody_can_go_on_from_are_thrown_away(tmp_path: Path, key: bytes) -> None:
    (tmp_path / ".a.partial" / "checkpoint").mkdir(parents=True)
    (tmp_path / ".a.partial" / "checkpoint" / "state").write_text("half")
    (tmp_path / ".a.partial" / "key.json").write_bytes(key)
    make_one(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


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


@pytest.mark.parametrize("change", [lambda text: text + "\n", lambda text: text.replace("{", '{"kind": "other",', 1)])
def test_a_manifest_is_read_in_its_own_bytes_only(tmp_path: Path, change: Callable[[str], str]) -> None:
    """White space is harmless; a key that stands there twice says different things to different readers."""
    path = make_one(tmp_path / "a").path / MANIFEST
    path.write_text(change(path.read_text()))
    with pytest.raises(ArtifactError, match="does not match its own sha256"):
        load(path.parent)


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


def test_what_an_artefact_holds(tmp_path: Path) -> None:
    def two(draft: Draft) -> None:
        build(draft)
        (draft.path / "body").mkdir()
        (draft.path / "body" / "config.json").write_text("{}")

    artifact = make_one(tmp_path / "a", build=two)
    assert artifact.folder("body") == tmp_path / "a" / "body"
    with pytest.raises(ArtifactError, match=r"\(thing\) has no file 'x'; it has: body/config.json, model.safetensors$"):
        artifact.file("x")
    with pytest.raises(ArtifactError, match=r"\(thing\) has no folder 'weights'"):
        artifact.folder("weights")
    (tmp_path / "a" / "one.txt").touch()
    assert artifact.folder("body").is_dir()
    (tmp_path / "a" / "two.txt").touch()
    with pytest.raises(ArtifactError, match=r"does not name: one.txt, two.txt$"):
        artifact.verify()
    (tmp_path / "a" / "body" / "extra.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"does not name: body/extra.json$"):
        artifact.folder("body")


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    def nested(draft: Draft) -> None:
        (draft.path / "body").mkdir()
        (draft.path / "body" / "config.json").write_text("{}")

    artifact = make_one(tmp_path / "real" / "a", build=nested)
    os.rename(artifact.path / "body", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", artifact.path / "body")
    with pytest.raises(ArtifactError, match="not a plain file"):
        load(artifact.path).file("body/config.json")
    os.symlink(tmp_path / "real", tmp_path / "linked")
    os.unlink(artifact.path / "body")
    os.rename(tmp_path / "elsewhere", artifact.path / "body")
    assert load(tmp_path / "linked" / "a").file("body/config.json").is_file()  # above it, a link is the user's own affair


def test_a_changed_byte_is_noticed_though_the_size_is_the_same(tmp_path: Path) -> None:
    path = make_one(tmp_path / "a").path / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="sha256"):
        load(path.parent).file(WEIGHTS)


def test_files_are_read_once_per_process_and_parsed_once_per_maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed, parsed = [], []
    monkeypatch.setattr(store, "check_content", lambda path: parsed.append(path))
    artifact = make_one(tmp_path / "a")
    assert [path.name for path in parsed] == [WEIGHTS]
    original = sha256_file
    monkeypatch.setattr(store, "sha256_file", lambda path: hashed.append(path) or original(path))
    assert artifact.file(WEIGHTS) == load(tmp_path / "a").file(WEIGHTS) == tmp_path / "a" / WEIGHTS
    assert hashed == [tmp_path / "a" / WEIGHTS]
    assert len(parsed) == 1
    os.rename(tmp_path / "a", tmp_path / "b")
    load(tmp_path / "b").file(WEIGHTS)
    assert parsed[1:] == hashed[1:] == [tmp_path / "b" / WEIGHTS]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_of_the_checkpoint_is_taken_and_kept_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError("no hard links here")

    def resumable(draft: Draft) -> None:
        save_file({"weight": np.ones(3, np.float32)}, draft.checkpoint / WEIGHTS)
        draft.take(WEIGHTS)
        assert (draft.checkpoint / WEIGHTS).read_bytes() == (draft.path / WEIGHTS).read_bytes()

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    artifact = make_one(tmp_path / "a", build=resumable)
    assert load_file(artifact.file(WEIGHTS))["weight"].tolist() == [1, 1, 1]
    assert not list(tmp_path.glob(".*"))


class OutOfMemoryError(Exception):
    """As torch's own is named."""


@pytest.mark.parametrize(
    ("error", "machine"),
    [
        (MemoryError(), True),
        (OutOfMemoryError("CUDA"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("No space left on device (os error 28)"), True),
        (OSError(28, "No space left on device"), True),
        (PermissionError(13, "Permission denied"), True),
        (ImportError("no module"), True),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (
            RuntimeError("[ONNXRuntimeError] : Failed to allocate memory for requested buffer of size 98304"),
            True,
        ),
        (RuntimeError("Failed to allocate memory for requested buffer of size 1152921504606846976"), False),  # a lying header
        (RuntimeError("std::bad_alloc"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (FileNotFoundError(2, "No such file"), False),
        (IsADirectoryError(21, "Is a directory"), False),
        (NotADirectoryError(20, "Not a directory"), False),
        (OSError("a library's own words"), False),
        (ValueError("shape"), False),
    ],
)
def test_what_the_machine_lacks_is_no_fault_of_a_file(error: Exception, machine: bool) -> None:
    assert is_machine_error(error) is machine


@pytest.mark.parametrize(("said", "reason"), [("", "no reason given"), ("x" * 400, "x" * 300), (" one\ntwo", "one")])
def test_an_unreadable_artefact_is_said_in_one_line(tmp_path: Path, said: str, reason: str) -> None:
    @opens
    def read(artifact: Artifact) -> None:
        raise KeyError if not said else RuntimeError(said)

    artifact = make_one(tmp_path / "a")
    with pytest.raises(ArtifactError) as error:
        read(artifact)
    kind = "RuntimeError" if said else "KeyError"
    assert str(error.value) == f"{tmp_path / 'a'} cannot be read as 'thing' ({kind}: {reason}); delete it and make it again"


def test_what_differs_is_named(tmp_path: Path) -> None:
    recipe = {"first": {"a": 1, "b": {"c": 2}}, "second": 3}
    make_one(tmp_path / "a", recipe)
    for change, message in (
        ({"second": 4}, r"\(second: 3 there, 4 now\)"),
        ({"first": {"a": 1, "b": {"c": 5}}}, r"\(first.b.c: 2 there, 5 now\)"),
        ({"third": 1}, r"\(third: None there, 1 now\)"),
    ):
        with pytest.raises(ArtifactError, match=message + r"; pass --overwrite \(OVERWRITE=1 with make\) to replace it, or "):
            make_one(tmp_path / "a", recipe | change)
    (tmp_path / "a" / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match=r"was made differently \(.*is not valid JSON"):
        make_one(tmp_path / "a", recipe)


def test_what_is_said_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "er" / "a"
    artifact = make_one(out)
    make_one(out)
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith(f"making {out}")
    assert re.search(rf"made {re.escape(str(out))} in \d\.\d s$", said[1])
    assert said[2].endswith(f"reusing {out}")
    assert 0 <= artifact.metrics["build_s"] < 60
    assert artifact.metrics["build_s"] == round(artifact.metrics["build_s"], 3)
    created = datetime.strptime(artifact.manifest["created"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - created).total_seconds()) < 60


@pytest.mark.parametrize("options", [{"overwrite": True}, {"remake": True}])
def test_what_is_no_artefact_is_never_deleted(tmp_path: Path, options: dict) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    for name in ("mine", "file"):
        with pytest.raises(ArtifactError, match="is no artefact; it is not replaced"):
            make_one(tmp_path / name, **options)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "a file"
    make_one(tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"does not name: notes.txt; they would be lost"):
        make_one(tmp_path / "a", {"size": 2}, **options)
    (tmp_path / "a" / "notes.txt").unlink()
    (tmp_path / "a" / MANIFEST).write_text("{")
    assert make_one(tmp_path / "a", {"size": 2}, **options).recipe == {"size": 2}  # a damaged artefact may go


def test_a_type_of_weight_that_is_not_searched_for_nan_is_refused(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save

    save({"w": torch.ones(2, dtype=torch.int16)}, tmp_path / WEIGHTS)
    check_content(tmp_path / WEIGHTS)
    for value in (1 + 1j, complex(0, float("nan"))):
        save({"w": torch.tensor([value], dtype=torch.complex64)}, tmp_path / WEIGHTS)
        if np.isnan(value):
            with pytest.raises(ContentError, match="holds NaN"):
                check_content(tmp_path / WEIGHTS)
        else:
            check_content(tmp_path / WEIGHTS)
    save({"w": torch.ones(2).to(torch.float8_e4m3fnuz)}, tmp_path / WEIGHTS)
    with pytest.raises(ContentError, match=r"is of type F8_E4M3FNUZ, which artefacts do not use|not a readable"):
        check_content(tmp_path / WEIGHTS)


def test_a_machine_that_lacks_memory_is_not_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"w": np.ones(3, np.float32)}, tmp_path / WEIGHTS)
    monkeypatch.setattr("foundation.content._check_finite", lambda *args: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        check_content(tmp_path / WEIGHTS)


IR = """<?xml version="1.0"?>
<net name="g" version="11"><layers>
<layer id="0" name="w" type="Const"><data element_type="f32" shape="2" offset="0" size="8" /></layer>
<layer id="1" name="mask" type="Const"><data element_type="f32" shape="1" offset="8" size="4" /></layer>
</layers></net>"""


def write_ir(folder: Path, text: str = IR, values: tuple[float, ...] = (1.0, 2.0, -np.inf)) -> Path:
    (folder / "model.bin").write_bytes(np.array(values, np.float32).tobytes())
    (folder / "model.xml").write_text(text)
    return folder / "model.xml"


def test_a_graph_of_openvino_is_checked_with_its_weights(tmp_path: Path) -> None:
    check_content(write_ir(tmp_path))
    check_content(tmp_path / "model.bin")
    with pytest.raises(ContentError, match="constant 'w' holds NaN"):
        check_content(write_ir(tmp_path, values=(1.0, np.nan, 0.0)))
    for text, said in (
        (IR.replace('offset="8"', 'offset="12"'), "lies outside of model.bin"),
        (IR.replace('offset="0"', 'offset="-8"'), "lies outside of model.bin"),
        (IR.replace("<net", '<!DOCTYPE net [<!ENTITY a SYSTEM "/etc/passwd">]><net'), "has declarations"),
        ("<html/>", "no graph of OpenVINO"),
        (IR[:60], r"not a readable \.xml file"),
        (IR.replace('size="8"', ""), r"not a readable \.xml file"),
    ):
        with pytest.raises(ContentError, match=said):
            check_content(write_ir(tmp_path, text))
    write_ir(tmp_path)
    (tmp_path / "model.bin").unlink()
    with pytest.raises(ContentError, match=r"needs its weights, model\.bin"):
        check_content(tmp_path / "model.xml")
    (tmp_path / "model.bin").symlink_to("/dev/zero")
    with pytest.raises(ContentError, match=r"needs its weights, model\.bin"):
        check_content(tmp_path / "model.xml")
