"""Numbers from a post's text: TF-IDF, its statistics, and its reduction by truncated SVD."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from threadpoolctl import threadpool_limits

from batch.arrays import Bools, Float32s, Float64s, Int32s
from batch.features.build import NOT_FEATURES, TextFeatures
from batch.features.tables import Feature, Kind

COMPONENTS = 16
MOST_WORDS = 20_000
FEWEST_POSTS = 2

STATISTICS = ("post_tfidf_sum", "post_tfidf_mean", "post_tfidf_max", "post_words")


def with_text(texts: pd.Series) -> Bools:
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


STARTS = 4
"""How often k-means starts anew; the tightest clusters are taken."""


def clusters(vectors: Float32s, count: int, seed: int) -> Int32s:
    """Group posts by k-means over their vectors.

    Parameters
    ----------
    vectors
        (posts, components), NaN in any place for a post without a vector.
    count
        How many groups to make of the posts with a vector; fewer where fewer
        of their vectors differ.
    seed
        The same vectors and seed give the same groups.

    Returns
    -------
    (posts,) group of each post, from 0 up without gaps. Posts without a vector
    are in a group of their own, the last.
    """
    has_vector = np.isfinite(vectors).all(axis=1) if vectors.shape[1] else np.zeros(len(vectors), dtype=bool)
    groups = np.zeros(len(vectors), dtype=np.int32)
    known = vectors[has_vector].astype(np.float64)
    made = min(count, len(np.unique(known, axis=0)))
    if made:
        with threadpool_limits(1):  # several threads would add up in an order that differs from run to run
            groups[has_vector] = KMeans(made, n_init=STARTS, random_state=seed).fit_predict(known)
        groups[~has_vector] = made
    return groups


CONSTANT = 1e-9
"""A column whose deviation is below this part of its greatest value says nothing."""


def content_vectors(posts: pd.DataFrame, text: TextFeatures) -> Float32s:
    """Put the numeric columns of the posts' view and of their texts together, each of mean 0 and deviation 1.

    Embedding columns that the view brings count like any other number.

    Returns
    -------
    (posts, columns) float32; a missing value is the mean, a post of which nothing is known NaN throughout.
    """
    numeric = posts.drop(columns=list(NOT_FEATURES)).select_dtypes(np.float64)
    values = np.concatenate([numeric.to_numpy(np.float64), text.values.astype(np.float64)], axis=1)
    vectors = standardised(values)
    vectors[~np.isfinite(values).any(axis=1)] = np.nan
    return vectors


def standardised(columns: Float64s) -> Float32s:
    """Bring columns of any scale to mean 0 and deviation 1; missing values become the mean.

    Values that float32 cannot hold are missing, a constant column becomes zeros.
    """
    known = np.abs(columns) < np.finfo(np.float32).max
    values = np.where(known, columns, 0)
    counts = np.maximum(known.sum(axis=0), 1)
    away = np.where(known, values - values.sum(axis=0) / counts, 0)
    deviation = np.sqrt((away**2).sum(axis=0) / counts)
    varies = deviation > CONSTANT * np.abs(values).max(axis=0, initial=0)
    scaled: Float32s = np.where(varies, away / np.where(varies, deviation, 1), 0).astype(np.float32)
    return scaled
