"""Words as vectors: alike for alike texts, by hand where that can be done, and no more of them than there are."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from distill.config import TextSection
from distill.text import build_text, load_text
from distill.words import word_vectors
from foundation.artifact import make

TITLES = ["Mario Kart", "Mario Kart 64", "Super Mario 64", "Zelda", "Super Zelda Mario", "zelda super", "Kart", "Tetris", ""]


def by_hand(prompts: list[str]) -> np.ndarray:
    """TF-IDF of words and pairs that two items have, each item's of length 1, float64[I, V]."""
    terms = []
    for prompt in prompts:
        words = prompt.lower().split()
        terms.append(Counter([*words, *map(" ".join, pairwise(words))]))
    count = Counter(term for own in terms for term in own)
    kept = sorted(term for term in count if count[term] > 1)
    rows = []
    for own in terms:
        row = [(1 + math.log(own[t])) * (1 + math.log((1 + len(prompts)) / (1 + count[t]))) if own[t] else 0.0 for t in kept]
        rows.append(np.array(row) / (np.linalg.norm(row) or 1.0))
    return np.array(rows)


def test_they_span_what_tf_idf_spans() -> None:
    expected_IV = by_hand(TITLES)
    found_IZ = word_vectors(TITLES, 512)
    num_dims = min(expected_IV.shape)
    assert found_IZ.dtype == np.float32 and found_IZ.shape == (len(TITLES) + 1, num_dims) and not found_IZ[0].any()
    left, singular, _ = np.linalg.svd(expected_IV, full_matrices=False)
    assert singular[-1] > 1e-3, "or directions would not be determined"
    expected_IZ = left * singular
    expected_IZ = (expected_IZ - expected_IZ.mean(axis=0)) / expected_IZ.std(axis=0)
    assert not expected_IV[-2:].any(), "nothing is known of these two, and they are not alike"
    expected_IZ[-2:] = 0
    np.testing.assert_allclose(found_IZ[1:] @ found_IZ[1:].T, expected_IZ @ expected_IZ.T, atol=1e-3)  # whatever the signs
    few_IZ = word_vectors(TITLES, 2)
    np.testing.assert_allclose(np.abs(few_IZ[1:]), np.abs(expected_IZ[:, :2]), atol=1e-3)


def test_texts_of_the_same_words_are_the_same() -> None:
    vectors_IZ = word_vectors(["Mario Kart", "mario  kart!", "Zelda", "Zelda"], 512)
    np.testing.assert_array_equal(vectors_IZ[1], vectors_IZ[2])
    assert np.linalg.matrix_rank(vectors_IZ, tol=1e-3) == 1, "of two texts there is one difference; rounding is not raised"


@pytest.mark.parametrize("prompts", [["", ""], ["one", "two"], ["a", "of it"], ["zelda", "zelda"]])
def test_texts_that_share_no_words_are_refused(prompts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"hardly a word .* leave out what reads them"):
        word_vectors(prompts, 4)


@pytest.mark.parametrize("whiten", [True, False])
def test_a_view_of_words_is_read_as_one_of_the_llm_and_needs_none(tmp_path: Path, whiten: bool) -> None:
    titles = ["Mario Kart", "Mario Kart 64", "Super Mario 64", "Zelda", "Super Zelda Mario", "Kart", "Zelda 64"]
    items = pl.DataFrame({"item_id": titles, "title": titles})
    section = TextSection(encoder="words", prompt="{title}", student_dims=4, whiten=whiten)
    no_llm: Any = None
    text = make(tmp_path / "x", "item-text", recipe={}, inputs={}, build=lambda d: build_text(no_llm, items, section, d))
    _, student_IZ = load_text(text)
    words_IZ = word_vectors(titles, 4)
    assert student_IZ.shape == (8, 4) and not student_IZ[0].any()
    if whiten:  # singular vectors of what is not centred are not quite independent; principal components are
        np.testing.assert_allclose(np.cov(student_IZ[1:].T, bias=True), np.eye(4), atol=0.01)
        basis_ZZ, *_ = np.linalg.lstsq(words_IZ, student_IZ)
        np.testing.assert_allclose(words_IZ @ basis_ZZ, student_IZ, atol=1e-3)
    else:  # rotated
        np.testing.assert_allclose(student_IZ @ student_IZ.T, words_IZ @ words_IZ.T, atol=0.05)
