"""Numbers from a post's text: TF-IDF, its statistics, and its reduction by truncated SVD."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from batch.arrays import Float32s
from batch.features.features import TextFeatures
from batch.features.tables import Feature, Kind

COMPONENTS = 16
MOST_WORDS = 20_000
FEWEST_POSTS = 2

STATISTICS = ("post_tfidf_sum", "post_tfidf_mean", "post_tfidf_max", "post_words")


def with_text(texts: pd.Series) -> npt.NDArray[np.bool_]:
    """Tell which posts have a text with anything but blanks in it, (posts,)."""
    return np.asarray(texts.notna() & (texts.astype(object).fillna("").str.strip() != ""), dtype=bool)


def text_features(texts: pd.Series, seed: int) -> TextFeatures:
    """Describe every post's text by a few numbers.

    Latent semantic analysis: singular vectors of the TF-IDF matrix (Deerwester
    et al., 1990), and statistics of its rows. Texts do not change, so there is
    no cutoff here.

    Parameters
    ----------
    texts
        One text per post, null for a post without.

    Returns
    -------
    Columns `post_text_0`... and those of STATISTICS, and (posts, columns)
    float32, NaN for a post without text. No columns where the texts share too
    few words.
    """
    has_text = with_text(texts)
    nothing = TextFeatures.none(len(texts))
    if has_text.sum() <= COMPONENTS:
        return nothing
    vectorizer = TfidfVectorizer(
        max_features=MOST_WORDS, min_df=FEWEST_POSTS, sublinear_tf=True, dtype=np.float32
    )
    try:
        weights = vectorizer.fit_transform(texts[has_text])
    except ValueError:  # what scikit-learn raises when no word is left
        return nothing
    components = min(COMPONENTS, weights.shape[1] - 1)
    if components < 1:
        return nothing
    reduced = TruncatedSVD(components, random_state=seed).fit_transform(weights)
    values = np.full((len(texts), components + len(STATISTICS)), np.nan, dtype=np.float32)
    values[has_text] = np.column_stack([reduced, _statistics(weights, texts[has_text])])
    names = (*(f"post_text_{place}" for place in range(components)), *STATISTICS)
    return TextFeatures(tuple(Feature(name, Kind.POST) for name in names), values)


def _statistics(weights: Any, texts: pd.Series) -> Float32s:
    """Sum, mean and largest of each text's weights, and its number of words as a logarithm.

    The mean is over the distinct words that the vocabulary knows; all three
    are 0 where it knows none. A text's squared weights add up to 1, so a small
    sum tells of few words that say much, a large one of many that say little.

    Parameters
    ----------
    weights
        (texts, words) sparse TF-IDF matrix.
    """
    total = np.asarray(weights.sum(axis=1)).ravel()
    known = np.maximum(np.diff(weights.indptr), 1)
    largest = weights.max(axis=1).toarray().ravel()
    words = np.log1p([len(text.split()) for text in texts])
    return np.column_stack([total, total / known, largest, words]).astype(np.float32)
