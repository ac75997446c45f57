"""What a post is about, as one vector: all that the view and its text tell in numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from batch.arrays import Float32s
from batch.features.features import NOT_FEATURES, TextFeatures

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


def standardised(columns: npt.NDArray[np.float64]) -> Float32s:
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
