"""The posts most similar to each post: exact, by a matrix product over all pairs, in chunks of posts.

Posts have several sets of vectors: collaborative factors, text, numeric columns.
The similarity of a pair is the weighted mean of the cosines in these sets. The
sets in which the post itself has no vector are excluded from the mean, so a post
without likes gets its list from its content. A candidate without a vector in a
set has cosine 0 there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from batch.arrays import Float32s, Int32s, Int64s
from batch.features.build import select_profile_columns
from batch.features.factors import Factors
from batch.features.text import standardise
from batch.training.dataset import Dataset
from batch.training.model import Model

MIN_SIMILARITY = 0.001
"""Posts with a lower similarity are not listed."""

PAIRS_BATCH = 4_000_000
"""Pairs in a chunk: less than 100 MB, for any number of posts."""

RESOLUTION = np.float32(1_000_000)
"""Similarities are compared in millionths; smaller differences are rounding errors of float32."""

WEIGHT_OF_LIKES = 2.0
WEIGHT_OF_CONTENT = 1.0
"""The factors weigh as much as text and numeric columns together.

Measured on the last month of a real network. How often two posts that the same
user came to like were in each other's lists did not differ significantly from
factors only. Nine of ten neighbours had the post's topic, unlike with factors only.
"""


@dataclass(frozen=True)
class PostVectors:
    """One set of vectors of the posts.

    Attributes
    ----------
    weight
        Weight of this set's cosine in the mean.
    vectors
        (posts, columns) float32; zeros for a post without a vector.
    """

    weight: float
    vectors: Float32s


@dataclass(frozen=True)
class Neighbours:
    """The most similar posts of each of some posts.

    Attributes
    ----------
    rows
        (posts,) int64 rows of the posts that the lists belong to.
    posts
        (posts, n) int32 rows of the listed posts, most similar first; -1 pads.
    similarities
        (posts, n) float32, from `MIN_SIMILARITY` to 1; NaN pads.
    """

    rows: Int64s
    posts: Int32s
    similarities: Float32s


def build_post_vectors(model: Model, dataset: Dataset) -> list[PostVectors]:
    """Return the vectors that a variant has of the posts: factors, numeric columns of the view, text."""
    _, columns = select_profile_columns(dataset.network)
    numbers = columns.select_dtypes(np.float64).to_numpy(np.float64)
    content = [standardise(numbers), centre(model.text.values)]
    factors = model.factors(dataset.network, dataset.now)
    vector_sets = [PostVectors(WEIGHT_OF_CONTENT, vectors) for vectors in content]
    if factors is None:
        return vector_sets
    return [PostVectors(WEIGHT_OF_LIKES, select_taste_factors(factors)), *vector_sets]


def select_taste_factors(factors: Factors) -> Float32s:
    """Return the posts' factors that describe who likes a post.

    A factor that is equal for all users is a bias of the post, one that is
    equal for all posts a bias of the user. Both are dropped.
    """
    users, posts = factors.users, factors.posts
    varies = (users != users[:1]).any(axis=0) & (posts != posts[:1]).any(axis=0)
    return posts[:, varies]


def centre(vectors: Float32s) -> Float32s:
    """Subtract each column's mean, so that what all posts share does not make them similar.

    A row with a NaN becomes zeros. The scales of the columns do not change.
    """
    known = np.isfinite(vectors).all(axis=1)
    result = np.zeros_like(vectors)
    if known.any():
        result[known] = vectors[known] - vectors[known].mean(axis=0, dtype=np.float64)
    return result


@dataclass(frozen=True)
class SimilarityJob:
    """What the lists of all posts depend on.

    Attributes
    ----------
    vectors
        (posts, columns) float32: the dot product of two rows is the weighted sum of their cosines.
    weights
        (posts,) float32 sum of the weights of the sets in which each post has a vector.
    blocked
        Rows of posts that are in no list.
    n
        Longest list.
    pairs_per_chunk
        Pairs of posts computed at a time.
    """

    vectors: Float32s
    weights: Float32s
    blocked: Int64s
    n: int
    pairs_per_chunk: int = PAIRS_BATCH

    @classmethod
    def of(cls, vector_sets: Sequence[PostVectors], posts: int, blocked: Int64s, n: int) -> SimilarityJob:
        """Build from sets of vectors, all with a row for each post."""
        vectors, weights = _join(vector_sets, posts)
        weight_of_post = np.maximum(weights.sum(axis=1), np.finfo(np.float32).tiny)
        return cls(vectors, weight_of_post, blocked, min(n, posts))

    @property
    def posts_per_chunk(self) -> int:
        """Posts whose neighbours are found at a time. It is fixed, as rounding errors may depend on it."""
        return max(1, self.pairs_per_chunk // max(len(self.vectors), 1))


def find_neighbours(job: SimilarityJob, rows: range) -> Iterator[Neighbours]:
    """Yield the neighbours of some posts chunk by chunk, in the order of the rows.

    Among equal similarities the lower row comes first. A post is never its own neighbour; a post without any
    vector has no neighbours.

    Parameters
    ----------
    rows
        Consecutive rows, from the start of a chunk on.
    """
    for start in range(rows.start, rows.stop, job.posts_per_chunk):
        stop = min(start + job.posts_per_chunk, rows.stop)
        scaled: Float32s = job.vectors[start:stop] / job.weights[start:stop, None]
        units: Float32s = scaled @ job.vectors.T
        units *= RESOLUTION
        np.rint(units, out=units)
        units[:, job.blocked] = 0
        units[np.arange(stop - start), np.arange(start, stop)] = 0
        neighbours, values = _select_largest(units, job.n, float(MIN_SIMILARITY * RESOLUTION))
        yield Neighbours(np.arange(start, stop), neighbours, values / RESOLUTION)


def _join(vector_sets: Sequence[PostVectors], posts: int) -> tuple[Float32s, Float32s]:
    """Join the sets, scaled so that the dot product of two rows is the weighted sum of their cosines.

    Returns
    -------
    (posts, columns) float32, and (posts, sets) float32: a set's weight, 0 for a post without a vector in it.
    """
    scaled, weights = [np.empty((posts, 0), np.float32)], [np.zeros((posts, 1), np.float32)]
    for each in vector_sets:
        lengths = np.linalg.norm(each.vectors.astype(np.float64), axis=1, keepdims=True)
        exists = lengths > 0
        unit = np.where(exists, each.vectors / np.where(exists, lengths, 1), 0)
        scaled.append((unit * np.sqrt(each.weight)).astype(np.float32))
        weights.append((exists * each.weight).astype(np.float32))
    return np.hstack(scaled), np.hstack(weights)


def _select_largest(values: Float32s, n: int, min_value: float) -> tuple[Int32s, Float32s]:
    """Return the n largest values of each row, none below `min_value`; equal ones from left to right.

    Returns
    -------
    (rows, n) int32 columns, -1 pads, and (rows, n) float32 values, NaN pads.
    """
    nth = np.partition(values, -n, axis=1)[:, -n]
    # More than n candidates only if several equal the n-th: sorting puts the leftmost of those first.
    candidates = np.flatnonzero(values >= np.maximum(nth, min_value)[:, None])
    rows, columns = np.divmod(candidates, values.shape[1])
    found = values[rows, columns]
    order = np.lexsort((columns, -found, rows))
    rows, columns, found = rows[order], columns[order], found[order]
    rank = np.arange(rows.size) - np.searchsorted(rows, rows)
    kept = rank < n
    selected = np.full((len(values), n), -1, dtype=np.int32)
    largest = np.full((len(values), n), np.nan, dtype=np.float32)
    selected[rows[kept], rank[kept]] = columns[kept]
    largest[rows[kept], rank[kept]] = found[kept]
    return selected, largest
