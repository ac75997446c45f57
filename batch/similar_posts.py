"""For each post the posts most like it, by brute force over all pairs: exact, a chunk of posts at a time.

batch/similar_posts.py says in which ways posts may be alike, each a block of vectors.
Each block tells a pair's cosine, and the pair's similarity is their weighed
mean. The blocks a post has no vector in are left out of the mean for
*its* list, so that a post nobody has liked yet gets its list from what it says;
within a list, a candidate without a vector is similar in nothing there (0).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from batch.arrays import Float32s, Int32s, Int64s
from batch.features.build import profile_columns
from batch.features.factors import Factors
from batch.features.text import standardised
from batch.training.dataset import Dataset
from batch.training.model import Model

LEAST = 0.001
"""A similarity below this is none, and the post is not listed."""

PAIRS_AT_A_TIME = 4_000_000
"""So many pairs make a chunk: under 100 MB, whatever the number of posts."""

STEPS = np.float32(1_000_000)
"""Similarities are compared in millionths: finer ones are noise of float32."""


@dataclass(frozen=True)
class Block:
    """One way in which posts may be alike.

    Attributes
    ----------
    weight
        Of this block's cosine beside the others'.
    vectors
        (posts, columns) float32; zeros for a post without.
    """

    weight: float
    vectors: Float32s


@dataclass(frozen=True)
class Neighbours:
    """The posts most like each of some posts.

    Attributes
    ----------
    post_ids
        (posts,) int64 ids of the posts that the lists belong to.
    posts
        (posts, n) int32 places of the posts listed, most alike first; -1 pads.
    similarities
        (posts, n) float32, from `LEAST` to 1; NaN pads.
    """

    post_ids: Int64s
    posts: Int32s
    similarities: Float32s


def similar_posts(
    blocks: Sequence[Block],
    post_ids: Int64s,
    blocked: Int64s,
    n: int,
    pairs_at_a_time: int = PAIRS_AT_A_TIME,
) -> Iterator[tuple[int, Neighbours]]:
    """Yield (how many posts, their neighbours) chunk by chunk, in the order of the ids.

    Equal similarities go to the lower post id. A post is never its own
    neighbour; one without a vector in any block has no neighbours.

    Parameters
    ----------
    blocks
        In which ways posts may be alike; all with a row for each post.
    post_ids
        (posts,) int64, ascending.
    blocked
        Rows of posts that are nobody's neighbour.
    n
        Longest list.
    """
    posts = post_ids.size
    n = min(n, posts)
    vectors, weights = _weighed(blocks, posts)
    weight_of_post = np.maximum(weights.sum(axis=1), np.finfo(np.float32).tiny)
    step = max(1, pairs_at_a_time // max(posts, 1))
    for start in range(0, posts, step):
        stop = min(start + step, posts)
        rows = vectors[start:stop] / weight_of_post[start:stop, None]
        units = rows @ vectors.T
        units *= STEPS
        np.rint(units, out=units)
        units[:, blocked] = 0
        units[np.arange(stop - start), np.arange(start, stop)] = 0
        places, nearest = _largest(units, n, float(LEAST * STEPS))
        yield stop - start, Neighbours(post_ids[start:stop], places, nearest / STEPS)


def _weighed(blocks: Sequence[Block], posts: int) -> tuple[Float32s, Float32s]:
    """Lay the blocks side by side so that a product of two rows is their weighed sum of cosines.

    Returns
    -------
    (posts, columns) float32, and (posts, blocks) float32: a block's weight, 0 for a post not in it.
    """
    parts, weights = [np.empty((posts, 0), np.float32)], [np.zeros((posts, 1), np.float32)]
    for block in blocks:
        lengths = np.linalg.norm(block.vectors.astype(np.float64), axis=1, keepdims=True)
        there = lengths > 0
        unit = np.where(there, block.vectors / np.where(there, lengths, 1), 0)
        parts.append((unit * np.sqrt(block.weight)).astype(np.float32))
        weights.append((there * block.weight).astype(np.float32))
    return np.hstack(parts), np.hstack(weights)


def _largest(values: Float32s, n: int, least: float) -> tuple[Int32s, Float32s]:
    """Find the n largest of each row, none below `least`; equal ones from left to right.

    Returns
    -------
    (rows, n) int32 columns, -1 pads, and (rows, n) float32 values, NaN pads.
    """
    nth = np.partition(values, -n, axis=1)[:, -n]
    # More than n only where several equal the n-th: once sorted, the leftmost of those come first.
    enough = np.flatnonzero(values >= np.maximum(nth, least)[:, None])
    rows, columns = np.divmod(enough, values.shape[1])
    found = values[rows, columns]
    order = np.lexsort((columns, -found, rows))
    rows, columns, found = rows[order], columns[order], found[order]
    rank = np.arange(rows.size) - np.searchsorted(rows, rows)
    within = rank < n
    places = np.full((len(values), n), -1, dtype=np.int32)
    largest = np.full((len(values), n), np.nan, dtype=np.float32)
    places[rows[within], rank[within]] = columns[within]
    largest[rows[within], rank[within]] = found[within]
    return places, largest


WEIGHT_OF_LIKES = 2.0
WEIGHT_OF_CONTENT = 1.0
"""Who likes a post tells as much as its text and the view's numbers together.

On a real network's last month that was within the noise of the likes alone in
how often two posts that one user came to like were in each other's lists, and
kept nine neighbours of ten in the post's topic, which the likes alone did not.
"""


def blocks_of(model: Model, dataset: Dataset) -> list[Block]:
    """Return what a variant knows of the posts: who likes them, their texts, numeric columns of the view."""
    _, columns = profile_columns(dataset.network)
    numbers = columns.select_dtypes(np.float64).to_numpy(np.float64)
    content = [standardised(numbers), centred(model.text.values)]
    factors = model.factors(dataset.network, dataset.now)
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
