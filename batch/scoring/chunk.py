"""Exact scores of a chunk of users with all posts, and each user's best n posts.

A user has one row in the table of each bundle (batch/scoring/bundles.py); which
one depends on the user and on the groups of the posts. For each post block:

1. compute the sum of every row with each of the 32 posts;
2. sum one row of each bundle for each user: 32 scores, without a walk through a tree;
3. push the scores above the user's threshold to the user's buffer.

The first step costs the same for any number of users, so a chunk has many users.
`score_chunk` is a pure function of a compiled forest and the users' rows; both
can be pickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from batch.arrays import Bytes, Float32s, Int32s, Int64s
from batch.jit import jit
from batch.loading.likes import Likes
from batch.scoring.compile import BUNDLES_BATCH, CompiledForest, Quantisation
from batch.scoring.leaf_tables import STRIDE
from batch.scoring.simd import WIDTH, aligned, dot_rows, sum_rows
from batch.scoring.top_n import POST_BLOCKS_BATCH, BlockScores, TopNBuffers, bytes_per_user, sortable_bits


@dataclass(frozen=True)
class UserRows:
    """The features and factors of the users of a chunk, and the posts that their lists leave out.

    Attributes
    ----------
    values
        (users, user columns) float32.
    affinities
        For each grouping: (users, groups, features) float32.
    factors
        (users, factors) float32; no factors if there is no dot product.
    left_out
        Posts to exclude.
    """

    values: Float32s
    affinities: tuple[Float32s, ...]
    factors: Float32s
    left_out: Likes

    def part(self, start: int, stop: int) -> UserRows:
        """Return those of users `start` to `stop - 1`."""
        return UserRows(
            self.values[start:stop],
            tuple(values[start:stop] for values in self.affinities),
            self.factors[start:stop],
            self.left_out.of_users(start, stop),
        )


@dataclass(frozen=True)
class Lists:
    """Lists of one chunk of users.

    Attributes
    ----------
    posts
        (users, n) int32 rows of posts, best first; -1 pads a short list.
    scores
        (users, n) float32 raw scores; NaN pads.
    left_out
        Posts that the lists leave out.
    drawn_from
        (users, n) int32 number of posts that the one in an explored place was drawn from, 0 in other
        places; None without explored places.
    """

    posts: Int32s
    scores: Float32s
    left_out: Likes
    drawn_from: Int32s | None = None

    @classmethod
    def concatenate(cls, chunks: Sequence[Lists], n: int) -> Lists:
        """Join scored lists of at most n posts of consecutive users."""
        return cls(
            np.concatenate([np.empty((0, n), np.int32), *(each.posts for each in chunks)]),
            np.concatenate([np.empty((0, n), np.float32), *(each.scores for each in chunks)]),
            Likes.concatenate([each.left_out for each in chunks]),
        )


def score_chunk(forest: CompiledForest, users: UserRows, n: int) -> Lists:
    """Score some users with all posts and return each user's n best."""
    user_row_ids, affinity_rows = _user_row_ids(forest, users), _affinity_rows(forest, users)
    # Sorted by row ids, consecutive users read nearby rows.
    order = np.lexsort(user_row_ids.T)
    user_row_ids, affinity_rows = user_row_ids[order], affinity_rows[order]
    factors = np.ascontiguousarray(users.factors[order])
    row_ids = aligned(user_row_ids.shape, np.uint8)
    sums = aligned((len(order), WIDTH), np.int32)
    mask_values, row_sums = (aligned((count, WIDTH), np.int32) for count in forest.scratch_rows)
    block_scores = BlockScores.allocate(len(order))
    buffers = TopNBuffers.empty(len(order), n, forest.tie_ranks)
    affinity_offsets = forest.affinity_offsets.view(np.int32)
    posts, groups = forest.post_blocks.posts, forest.post_blocks.groups
    for block in range(len(posts)):
        if block == 0 or (groups[block] != groups[block - 1]).any():
            row_ids[...] = user_row_ids
            columns = _affinity_columns(users, groups[block])
            _add_offsets(affinity_offsets, affinity_rows, columns, row_ids.view(np.int32))
        sums.fill(0)
        for index, batch in enumerate(forest.batches):
            batch.compute_row_sums(forest.post_bins[block], mask_values, row_sums)
            _sum_bundles(row_sums, row_ids, index * BUNDLES_BATCH, batch.bundles, sums)
        at = block % POST_BLOCKS_BATCH
        scores = BlockScores(block_scores.scores[at], block_scores.best[at])
        _compute_scores(sums, forest.quantisation, factors, forest.post_factors[block], scores)
        if at == POST_BLOCKS_BATCH - 1 or block == len(posts) - 1:
            buffers.push(block_scores, order, posts[block - at : block + 1], users.left_out)
    return Lists(*buffers.lists(), users.left_out)


def bytes_per_chunk(forest: CompiledForest) -> int:
    """Return the memory of a chunk that does not depend on its number of users."""
    return 4 * WIDTH * sum(forest.scratch_rows)


def bytes_per_chunk_user(forest: CompiledForest, affinity_values: int, n: int) -> int:
    """Return the memory of one more user in a chunk, the finished list in two forms included.

    Parameters
    ----------
    affinity_values
        Affinity values of a user: groups times features, over all groupings.
    """
    row_ids = 4 * int(forest.affinity_offsets.shape[1])
    scores = 4 * POST_BLOCKS_BATCH * (WIDTH + 1) + 8 * int(forest.post_factors.shape[1])
    return row_ids + 16 * affinity_values + scores + bytes_per_user(n)


def _user_row_ids(forest: CompiledForest, users: UserRows) -> Bytes:
    """Return the part of the bundles' row ids that depends on the user columns: (users, bundles)."""
    row_ids = np.zeros((len(users.values), forest.affinity_offsets.shape[1]), dtype=np.uint8)
    for column, (bins, offsets) in enumerate(zip(forest.user_bins, forest.user_offsets, strict=True)):
        row_ids += offsets[bins.find(users.values[:, column])]
    return row_ids


def _affinity_rows(forest: CompiledForest, users: UserRows) -> Int32s:
    """Return each affinity value's row of `affinity_offsets`: (users, groups x features per grouping)."""
    found, first = [np.empty((len(users.values), 0), dtype=np.int32)], 0
    for columns, values in zip(forest.affinity_bins, users.affinities, strict=True):
        rows = np.empty(values.shape, dtype=np.int32)
        for feature, bins in enumerate(columns):
            rows[:, :, feature] = first + bins.find(values[:, :, feature])
            first += len(bins.ends) + 1
        found.append(rows.reshape(len(rows), -1))
    return np.concatenate(found, axis=1)


def _affinity_columns(users: UserRows, groups: Int32s) -> Int64s:
    """Return the columns of `_affinity_rows` that belong to some groups, one group of each grouping."""
    columns, first = [np.empty(0, dtype=np.int64)], 0
    for values, group in zip(users.affinities, groups, strict=True):
        columns.append(first + int(group) * values.shape[2] + np.arange(values.shape[2]))
        first += values.shape[1] * values.shape[2]
    return np.concatenate(columns)


@jit
def _add_offsets(offsets: Int32s, affinity_rows: Int32s, affinity_columns: Int64s, row_ids: Int32s) -> None:
    """Add the offsets of some affinity columns to each user's row ids.

    A number holds the bytes of four bundles. A bundle's row id fits a byte, so
    no byte carries over into the next.
    """
    vectors, columns = row_ids.shape[1] // WIDTH, len(affinity_columns)
    index = np.empty(columns, dtype=np.uint32)
    for user in range(len(row_ids)):
        for vector in range(vectors):
            for i in range(columns):
                index[i] = affinity_rows[user, affinity_columns[i]] * vectors + vector
            sum_rows(offsets, 0, index, 0, columns, row_ids, user * vectors + vector)


@jit
def _sum_bundles(row_sums: Int32s, row_ids: Bytes, first: int, bundles: int, sums: Int32s) -> None:
    """Add one row of each of some bundles, from the first on, to the sums of each user."""
    width = row_ids.shape[1]
    for user in range(len(row_ids)):
        sum_rows(row_sums, STRIDE, row_ids, user * width + first, bundles, sums, user)


@jit
def _compute_scores(
    sums: Int32s,
    quantisation: Quantisation,
    user_factors: Float32s,
    post_factors: Float32s,
    result: BlockScores,
) -> None:
    """Turn sums into scores with their dot products, (users, 32), and find the best of the 32."""
    quantum, offset = quantisation.quantum, quantisation.offset
    scores, best = result.scores, result.best
    bits = scores.view(np.uint32)
    dots = np.zeros((1, WIDTH), dtype=np.float32)
    factors = user_factors.shape[1]
    for user in range(len(sums)):
        dot_rows(user_factors, user * factors, post_factors, factors, dots)
        for lane in range(WIDTH):
            # Adding zero turns -0.0 into 0.0, its equal.
            scores[user, lane] = np.float32(sums[user, lane] * quantum + offset + dots[0, lane]) + np.float32(
                0
            )
        greatest = np.uint32(0)
        for lane in range(WIDTH):
            greatest = max(greatest, sortable_bits(bits[user, lane]))
        best[user] = greatest
