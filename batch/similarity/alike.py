"""In which ways posts may be alike: who likes them, what they say, and what the network tells of them."""

from __future__ import annotations

import numpy as np

from batch.arrays import Float32s
from batch.features.content import standardised
from batch.features.factors import Factors
from batch.features.features import profile_columns
from batch.learning.gather import Gathered
from batch.learning.model import Model
from batch.similarity.similar import Block

WEIGHT_OF_LIKES = 2.0
WEIGHT_OF_CONTENT = 1.0
"""Who likes a post tells as much as its text and the view's numbers together.

On a real network's last month that was within the noise of the likes alone in
how often two posts that one user came to like were in each other's lists, and
kept nine neighbours of ten in the post's topic, which the likes alone did not.
"""


def blocks_of(model: Model, gathered: Gathered) -> list[Block]:
    """Return what a variant knows of the posts: who likes them, their texts, numeric columns of the view."""
    _, columns = profile_columns(gathered.network)
    numbers = columns.select_dtypes(np.float64).to_numpy(np.float64)
    content = [standardised(numbers), centred(model.text.values)]
    factors = model.factors(gathered.network, gathered.now)
    blocks = [Block(WEIGHT_OF_CONTENT, vectors) for vectors in content]
    return blocks if factors is None else [Block(WEIGHT_OF_LIKES, tastes(factors)), *blocks]


def tastes(factors: Factors) -> Float32s:
    """Return the posts' factors without the columns that do not tell one post's public from another's.

    A column that is the same for all users adds a post's own worth to the dot
    product, one that is the same for all posts a user's: no taste in either.
    """
    told = (factors.users != factors.users[:1]).any(axis=0) & (factors.posts != factors.posts[:1]).any(axis=0)
    return factors.posts[:, told]


def centred(vectors: Float32s) -> Float32s:
    """Subtract each column's mean: what all posts share makes none of them alike.

    A row with a NaN becomes zeros. The columns' scales are left as they are.
    """
    known = np.isfinite(vectors).all(axis=1)
    result = np.zeros_like(vectors)
    if known.any():
        result[known] = vectors[known] - vectors[known].mean(axis=0, dtype=np.float64)
    return result
