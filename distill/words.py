"""The words of item texts as vectors, with no LLM: what the LLM's vectors are to be held against, in a linear model
(`ease-words`) and in a network (`encoder = "words"` of a view).

TF-IDF of words and of pairs of neighbouring words that two items have, (1 + log tf)(1 + log((1 + I) / (1 + df))), each item's
of length 1 (Salton and Buckley, 1988), by scikit-learn; then latent semantic analysis (Deerwester et al., 1990): the first Z
singular vectors, each of mean zero and unit variance, as `text.whiten` has an LLM's. Left out: TF-IDF itself as Z, far worse
alone on Amazon Games, and no help beside a network (docs/log.md, 2026-11-30).
"""

from __future__ import annotations

import numpy as np


def word_vectors(prompts: list[str], dims: int) -> np.ndarray:
    """Of each item's text, float32[I + 1, Z]; Z = `dims` or as many as there are.

    Row 0 is padding and zero, as is an item that shares no word with another. Raises ValueError where hardly any do.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    try:
        weight_IV = words.fit_transform(prompts)
    except ValueError:  # there are none
        weight_IV = np.empty((len(prompts), 0))
    if weight_IV.shape[1] < 2:
        raise ValueError(
            "hardly a word is in the texts of two items (text.prompt): leave out what reads them (ease-words, a view)"
        )
    vectors_IZ = TruncatedSVD(min(dims, *weight_IV.shape), random_state=0).fit_transform(weight_IV)
    vectors_IZ -= vectors_IZ.mean(axis=0)
    vectors_IZ /= vectors_IZ.std(axis=0) + 1e-6  # rounding, of texts with fewer directions than words, is not raised
    vectors_IZ[np.asarray(weight_IV.sum(axis=1)).ravel() == 0] = 0
    return np.concatenate([np.zeros_like(vectors_IZ[:1]), vectors_IZ]).astype(np.float32)
