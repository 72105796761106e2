"""The exported text encoder: the vectors of PyTorch, from texts alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from distill.config import TextSection
from distill.text import build_text, encode_new
from export.config import TextEncoderSection
from export.parity import ParityError
from export.text_encoder import build_text_encoder, open_text_encoder, similarity
from foundation.artifact import Artifact, make
from recommender.data import load_dataset
from recommender.runtimes.text_encoder import ENCODER, SETTINGS, TOKENIZER, TextEncoder

DIMS = 16


@pytest.fixture(scope="module")
def items(dataset: Artifact) -> pl.DataFrame:
    return load_dataset(dataset).items


@pytest.fixture(scope="module")
def text(items: pl.DataFrame, tiny_llm: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    section = TextSection(student_dims=DIMS, layers=[1], max_tokens=9)
    out = tmp_path_factory.mktemp("text") / "text"
    recipe = {"text": section.model_dump(mode="json")}
    return make(out, "item-text", recipe=recipe, inputs={}, build=lambda draft: build_text(tiny_llm, items, section, draft))


def export(text: Artifact, llm: Artifact, items: pl.DataFrame, out: Path, **keys: object) -> Artifact:
    section = TextEncoderSection.model_validate(keys)
    build = lambda draft: build_text_encoder(text, llm, items, section, draft)  # noqa: E731
    return make(out, "text-encoder", recipe={}, inputs={"text": text}, build=build)


@pytest.fixture(scope="module", params=["fp32", "int8"])
def encoder(
    request: pytest.FixtureRequest,
    text: Artifact,
    tiny_llm: Artifact,
    items: pl.DataFrame,
    tmp_path_factory: pytest.TempPathFactory,
) -> Artifact:
    return export(text, tiny_llm, items, tmp_path_factory.mktemp("encoder") / "e", precision=request.param)


def test_items_get_the_vectors_of_pytorch(encoder: Artifact, text: Artifact, tiny_llm: Artifact) -> None:
    new = pl.DataFrame(
        [
            {"item_id": "a", "title": "a thing with a title that is far longer than nine tokens are", "year": 1995},
            {"item_id": "b", "title": "item 3", "year": None},
            {"item_id": "c", "title": "é", "year": 2001},
        ]
    )
    expected_NZ = encode_new(text, tiny_llm, new, "fp32")
    found_NZ = TextEncoder(encoder.path, 1).encode_items(new.iter_rows(named=True))
    assert found_NZ.shape == (3, DIMS) and found_NZ.dtype == np.float32
    exact = encoder.metrics["precision"] == "fp32"
    np.testing.assert_allclose(found_NZ, expected_NZ, atol=1e-5 if exact else 0.1 * np.abs(expected_NZ).max())
    assert similarity(expected_NZ, found_NZ)["cosine_min"] > (0.99999 if exact else 0.99)


def test_a_text_does_not_depend_on_its_batch(encoder: Artifact) -> None:
    texts = [f"{'word ' * (number % 7)}thing {number}" for number in range(70)]
    opened = TextEncoder(encoder.path)
    together_NZ = opened.encode(texts)
    alone_NZ = np.concatenate([opened.encode([text]) for text in texts])
    np.testing.assert_allclose(together_NZ, alone_NZ, atol=1e-5)


def test_an_empty_text_asks_for_nothing(encoder: Artifact) -> None:
    vectors_NZ = TextEncoder(encoder.path).encode(["", "thing 1", " \n"])
    assert (vectors_NZ[[0, 2]] == 0).all() and (vectors_NZ[1] != 0).any()
    assert TextEncoder(encoder.path).encode([]).shape == (0, DIMS)


SERVED = """
import sys
for name in ("torch", "transformers", "pydantic", "polars", "onnx", "safetensors", "foundation"):
    sys.modules[name] = None  # an import of it is an error
from pathlib import Path
from recommender.runtimes.onnxruntime import OnnxRecommender
from recommender.runtimes.text_encoder import TextEncoder
print(OnnxRecommender.__name__, TextEncoder(Path(sys.argv[1]), 1).encode(["a thing"]).shape[1])
"""


def test_serving_needs_no_more_than_onnx_runtime_numpy_and_tokenizers(encoder: Artifact) -> None:
    done = subprocess.run([sys.executable, "-c", SERVED, str(encoder.path)], capture_output=True, text=True)
    assert done.stdout.split() == ["OnnxRecommender", str(DIMS)], done.stderr


def test_the_artefact_says_what_it_is(encoder: Artifact, items: pl.DataFrame) -> None:
    assert open_text_encoder(encoder).dims == DIMS
    assert set(encoder.manifest["files"]) == {ENCODER, TOKENIZER, SETTINGS}
    assert json.loads(encoder.file(SETTINGS).read_bytes())["max_tokens"] == 9
    assert encoder.metrics["dims"] == DIMS and encoder.metrics["compared_items"] == min(200, items.height)


def test_a_graph_is_compared_with_what_is_not_rounded_to_bf16(
    text: Artifact, tiny_llm: Artifact, items: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.device.fast_bf16", lambda: True)
    assert export(text, tiny_llm, items, tmp_path / "e", precision="fp32").metrics["cosine_min"] > 0.99999


def test_8_bits_take_less_room(text: Artifact, tiny_llm: Artifact, items: pl.DataFrame, tmp_path: Path) -> None:
    sizes = [
        export(text, tiny_llm, items, tmp_path / precision, precision=precision).file(ENCODER).stat().st_size
        for precision in ("fp32", "int8")
    ]
    assert sizes[1] < sizes[0]


def test_vectors_too_far_from_pytorch_are_refused(
    text: Artifact, tiny_llm: Artifact, items: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TextEncoder.encode
    monkeypatch.setattr(TextEncoder, "encode", lambda self, texts: whole(self, [text[::-1] for text in texts]))
    with pytest.raises(ParityError, match="min_cosine"):
        export(text, tiny_llm, items, tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_a_text_encoder_larger_than_an_onnx_file_is_refused(
    text: Artifact, tiny_llm: Artifact, items: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.text_encoder._MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"text\.layers"):
        export(text, tiny_llm, items, tmp_path / "e")
