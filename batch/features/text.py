"""Text features of posts by TF-IDF and truncated SVD, and clusters of posts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from threadpoolctl import threadpool_limits

from batch.arrays import Bools, Float32s, Float64s, Int32s
from batch.features.build import NOT_FEATURES
from batch.features.tables import FeatureColumns, Kind

COMPONENTS = 16
MAX_WORDS = 20_000
MIN_POSTS_PER_WORD = 2

KMEANS_STARTS = 4
"""Random starts of k-means; the clusters with the lowest inertia are used."""

MIN_RELATIVE_SCALE = 1e-9
"""A column is constant if its standard deviation is below this share of its greatest absolute value."""


def has_text(texts: pd.Series) -> Bools:
    """Return whether each post has a text that is not blank, (posts,)."""
    return np.asarray(texts.notna() & (texts.astype(object).fillna("").str.strip() != ""), dtype=bool)


def compute_text_features(texts: pd.Series, seed: int) -> FeatureColumns:
    """Compute numeric features of every post's text.

    Latent semantic analysis: singular vectors of the TF-IDF matrix (Deerwester
    et al., 1990), and statistics of its rows. Texts do not change, so there is
    no cutoff.

    Parameters
    ----------
    texts
        One text per post, null for a post without.

    Returns
    -------
    Columns `post_text_0`... and those of `_compute_statistics`, with a row per
    post, NaN for a post without text. No columns if the texts have too few
    words in common.
    """
    with_text = has_text(texts)
    empty = FeatureColumns.empty(len(texts))
    if with_text.sum() <= COMPONENTS:
        return empty
    vectorizer = TfidfVectorizer(
        max_features=MAX_WORDS, min_df=MIN_POSTS_PER_WORD, sublinear_tf=True, dtype=np.float32
    )
    try:
        weights = vectorizer.fit_transform(texts[with_text])
    except ValueError:  # scikit-learn raises it if no word is left
        return empty
    components = min(COMPONENTS, weights.shape[1] - 1)
    if components < 1:
        return empty
    reduced = TruncatedSVD(components, random_state=seed).fit_transform(weights)
    found = FeatureColumns.numbered("post_text", Kind.POST, reduced).hstack(
        _compute_statistics(weights, texts[with_text])
    )
    values = np.full((len(texts), len(found.features)), np.nan, dtype=np.float32)
    values[with_text] = found.values
    return FeatureColumns(found.features, values)


def _compute_statistics(weights: Any, texts: pd.Series) -> FeatureColumns:
    """Compute sum, mean and maximum of each text's weights, and the logarithm of its number of words.

    The mean is over the distinct words in the vocabulary; all three are 0 for
    a text without such words. A text's squared weights sum to 1, so a small sum
    means few informative words, a large one many common words.

    Parameters
    ----------
    weights
        (texts, words) sparse TF-IDF matrix.
    """
    total = np.asarray(weights.sum(axis=1)).ravel()
    known = np.maximum(np.diff(weights.indptr), 1)
    largest = weights.max(axis=1).toarray().ravel()
    words = np.log1p([len(text.split()) for text in texts])
    statistics = {
        "post_tfidf_sum": total,
        "post_tfidf_mean": total / known,
        "post_tfidf_max": largest,
        "post_words": words,
    }
    return FeatureColumns.from_columns(Kind.POST, statistics)


def cluster_posts(vectors: Float32s, count: int, seed: int) -> Int32s:
    """Group posts by k-means over their vectors.

    Parameters
    ----------
    vectors
        (posts, components); a row with a NaN is a post without a vector.
    count
        Number of groups of the posts with a vector; there are fewer groups if
        there are fewer distinct vectors.
    seed
        The same vectors and seed give the same groups.

    Returns
    -------
    (posts,) group of each post, from 0 up without gaps. Posts without a vector
    are in one separate group, the last.
    """
    has_vector = np.isfinite(vectors).all(axis=1) if vectors.shape[1] else np.zeros(len(vectors), dtype=bool)
    groups = np.zeros(len(vectors), dtype=np.int32)
    known = vectors[has_vector].astype(np.float64)
    made = min(count, len(np.unique(known, axis=0)))
    if made:
        with threadpool_limits(1):  # the sums of several threads would depend on their timing
            groups[has_vector] = KMeans(made, n_init=KMEANS_STARTS, random_state=seed).fit_predict(known)
        groups[~has_vector] = made
    return groups


def build_content_vectors(posts: pd.DataFrame, text: FeatureColumns) -> Float32s:
    """Join the numeric columns of the posts' view and of their texts, each standardised.

    Embedding columns of the view are treated like other numbers.

    Returns
    -------
    (posts, columns) float32; a missing value is the mean. A post with all values missing is all NaN.
    """
    numeric = posts.drop(columns=list(NOT_FEATURES), errors="ignore").select_dtypes(np.float64)
    values = np.concatenate([numeric.to_numpy(np.float64), text.values.astype(np.float64)], axis=1)
    vectors = standardise(values)
    vectors[~np.isfinite(values).any(axis=1)] = np.nan
    return vectors


def standardise(columns: Float64s) -> Float32s:
    """Scale each column to mean 0 and standard deviation 1; missing values become the mean.

    Values outside the range of float32 are missing. A constant column becomes zeros.
    """
    known = np.abs(columns) < np.finfo(np.float32).max
    values = np.where(known, columns, 0)
    counts = np.maximum(known.sum(axis=0), 1)
    deviations = np.where(known, values - values.sum(axis=0) / counts, 0)
    scale = np.sqrt((deviations**2).sum(axis=0) / counts)
    varies = scale > MIN_RELATIVE_SCALE * np.abs(values).max(axis=0, initial=0)
    scaled: Float32s = np.where(varies, deviations / np.where(varies, scale, 1), 0).astype(np.float32)
    return scaled
