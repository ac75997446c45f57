"""Groups posts by what their texts say, for features of (user, group of posts)."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from batch.arrays import Float32s, Int32s

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
