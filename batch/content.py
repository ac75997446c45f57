"""What a post is about, as one vector: all that the view and its text tell in numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd

from batch.features import NOT_FEATURES, TextFeatures
from batch.tables import Float32s


def content_vectors(posts: pd.DataFrame, text: TextFeatures) -> Float32s:
    """Put the numeric columns of the posts' view and of their texts together, each of mean 0 and deviation 1.

    Embedding columns that the view brings count like any other number.

    Returns
    -------
    (posts, columns) float32, 0 where a value is missing; a post of which no value is known is NaN throughout.
    """
    numeric = posts.drop(columns=list(NOT_FEATURES)).select_dtypes(np.float64)
    values = np.concatenate([numeric.to_numpy(np.float64), text.values.astype(np.float64)], axis=1)
    values[~np.isfinite(values)] = np.nan
    known = np.isfinite(values)
    count = np.maximum(known.sum(axis=0), 1)
    centred = values - np.nansum(values, axis=0) / count
    deviation = np.sqrt(np.nansum(centred**2, axis=0) / count)
    scaled = np.where(known, centred / np.where(deviation > 0, deviation, 1), 0)
    scaled[~known.any(axis=1)] = np.nan
    return scaled.astype(np.float32)
