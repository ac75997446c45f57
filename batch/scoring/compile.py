"""The compiled forest: everything about a model and the posts that the scoring of any user shares.

`compile_forest` turns a Booster and the posts into flat arrays of a few MiB that
pickle to another process: what each bin of a user or affinity column adds to
the bundles' row ids, the tables for row sums (batch/scoring/leaf_tables.py), and
the posts in *post blocks* of 32 that belong to the same groups, so that a user
has the same row ids for a whole post block.

Leaf values are rounded to multiples of a small quantum, so that their sums are
integers and exact in any order. For T trees the quantum is S / (2**31 - 1 - T),
where S sums half the range of the leaf values over the trees. The middles of
these ranges are summed into one `offset`. The error is at most half a quantum
for each tree, and T * S / 2**32 for the forest: 5e-7 for 200 trees and S = 10,
5e-6 for 2,000. It is far less in practice, as the trees' errors are independent.
The sum of the forest and the dot product is then rounded to float32; the dot
product itself is accumulated in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from batch.arrays import Bytes, Float32s, Float64s, Int32s, Int64s
from batch.features.tables import FeatureTables, Kind
from batch.scoring.bundles import Bundle, merge_bundles, split_tree
from batch.scoring.forest import Booster, Forest, read_forest
from batch.scoring.leaf_blocks import Bins, cut_into_bins, order_leaves
from batch.scoring.leaf_tables import STRIDE, LeafTables
from batch.scoring.simd import WIDTH
from batch.scoring.top_n import rank_ties
from contract.errors import ModelError

# Offsets are added to row ids as bytes, four to a 32-bit lane of a vector.
BYTES_PER_VECTOR = 4 * WIDTH

# The row sums of this many bundles fit into the processor's cache; each batch is another pass over the users.
BUNDLES_BATCH = 48

# A model is rejected if its quantisation error exceeds TOLERANCE at SIGMAS standard deviations.
TOLERANCE, SIGMAS = 1e-5, 6

# Share of the post blocks, those with the highest scores, that are scored first.
_HIGH_SHARE = 0.25


class Quantisation(NamedTuple):
    """The forest's raw score of a pair is `quantum` * (its sum of integers) + `offset`."""

    quantum: float
    offset: float


@dataclass(frozen=True)
class PostBlocks:
    """Posts in blocks of 32 that belong to the same groups.

    Attributes
    ----------
    posts
        (post blocks, 32) int32 rows of the posts in the tables; -1 pads.
    groups
        (post blocks, groupings) int32 groups that all posts of a block belong to.
    """

    posts: Int32s
    groups: Int32s

    def gather(self, columns: list[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
        """Return columns of post values as (post blocks, columns, 32); pads have the values of some post."""
        values = np.empty((len(self.posts), len(columns), WIDTH), dtype=dtype)
        for index, column in enumerate(columns):
            values[:, index] = column[self.posts]
        return values


@dataclass(frozen=True)
class CompiledForest:
    """A forest compiled for some posts, ready to score any users.

    Attributes
    ----------
    quantisation
        Turns sums of integers into scores.
    batches
        Tables for row sums, BUNDLES_BATCH bundles each.
    user_bins, user_offsets
        The bins of each user column; (bins, bundles) what a bin adds to the row ids.
    affinity_bins
        The bins of the affinity columns, for each grouping.
    affinity_offsets
        (bins, bundles) the same for all affinity columns, concatenated.
    post_blocks
        The posts.
    post_bins
        (post blocks, post columns, 32) int32 bins of the posts' values.
    post_factors
        (post blocks, factors, 32) float32; no factors if there is no dot product.
    tie_ranks
        (posts,) int32 order of posts with equal scores, see `rank_ties`.
    """

    quantisation: Quantisation
    batches: tuple[LeafTables, ...]
    user_bins: tuple[Bins, ...]
    user_offsets: tuple[Bytes, ...]
    affinity_bins: tuple[tuple[Bins, ...], ...]
    affinity_offsets: Bytes
    post_blocks: PostBlocks
    post_bins: Int32s
    post_factors: Float32s
    tie_ranks: Int32s

    @property
    def scratch_rows(self) -> tuple[int, int]:
        """Numbers of masks and of row sums in the largest batch: 32 int32 each while users are scored."""
        masks = max((len(batch.masks) for batch in self.batches), default=0)
        return masks, max((batch.bundles for batch in self.batches), default=0) * STRIDE


def compile_forest(
    booster: Booster,
    tables: FeatureTables,
    post_factors: Float32s | None,
    blocked: Int64s,
) -> CompiledForest:
    """Compile a model for the posts of some tables.

    Parameters
    ----------
    booster
        Trained on `tables.columns`.
    tables
        The values of users and affinities are not read.
    post_factors
        (posts, factors), or None.
    blocked
        Rows of posts to exclude from all lists.

    Raises
    ------
    ModelError
        The model cannot be scored this way, or it reads other columns.
    """
    forest = read_forest(booster)
    kinds = [column.kind for column in tables.columns]
    if forest.columns != len(kinds):
        raise ModelError(
            f"the model reads {forest.columns} columns, but there are {len(kinds)} features;"
            " train it on these features"
        )
    bins = cut_into_bins(forest)
    post_columns = [index for index, kind in enumerate(kinds) if kind is Kind.POST]
    bundles, quantisation = _build_bundles(forest, bins, frozenset(range(len(kinds))) - set(post_columns))
    users, first_affinity = len(tables.user_features), len(tables.user_features) + len(post_columns)
    offsets = _row_offsets(bundles, bins)
    post_blocks = build_post_blocks(tables, blocked, baseline_scores(booster, tables))
    affinity_bins = iter(bins[first_affinity:])
    return CompiledForest(
        quantisation=quantisation,
        batches=tuple(
            LeafTables.build(bundles[start : start + BUNDLES_BATCH], post_columns, quantisation.quantum)
            for start in range(0, len(bundles), BUNDLES_BATCH)
        ),
        user_bins=tuple(bins[:users]),
        user_offsets=tuple(offsets[:users]),
        affinity_bins=tuple(tuple(next(affinity_bins) for _ in a.features) for a in tables.affinities),
        affinity_offsets=np.concatenate([offsets[0][:0], *offsets[first_affinity:]]),
        post_blocks=post_blocks,
        post_bins=post_blocks.gather(
            [bins[c].find(tables.post_values[:, c - users]) for c in post_columns], np.int32
        ),
        post_factors=post_blocks.gather([] if post_factors is None else list(post_factors.T), np.float32),
        tie_ranks=rank_ties(tables.post_likes),
    )


def _build_bundles(
    forest: Forest, bins: list[Bins], columns: frozenset[int]
) -> tuple[list[Bundle], Quantisation]:
    """Cut the forest into leaf blocks and bundle them by their rows over some columns."""
    half_ranges = offset = 0.0
    singles: list[Bundle] = []
    for tree in forest.trees:
        least, greatest = float(tree.values.min()), float(tree.values.max())
        middle = (least + greatest) / 2
        offset += middle
        half_ranges += (greatest - least) / 2
        if least < greatest:
            singles += split_tree(order_leaves(replace(tree, values=tree.values - middle), bins), columns)
    quantum = half_ranges / (2**31 - 1 - len(forest.trees)) if half_ranges else 1.0
    if half_ranges and SIGMAS * quantum * math.sqrt(len(forest.trees) / 12) > TOLERANCE:
        raise ModelError(
            f"the leaf values of the model are so far apart (together {half_ranges:.3g}) that its scores are"
            f" not exact to {TOLERANCE}; train it with a lower learning_rate or more regularisation"
        )
    return merge_bundles(singles), Quantisation(quantum, offset)


def _row_offsets(bundles: list[Bundle], bins: list[Bins]) -> list[Bytes]:
    """Return what each bin of each column adds to the row ids: (bins, bundles), padded to whole vectors."""
    width = (len(bundles) // BYTES_PER_VECTOR + 1) * BYTES_PER_VECTOR
    offsets = [np.zeros((len(column.ends) + 1, width), dtype=np.uint8) for column in bins]
    for index, bundle in enumerate(bundles):
        for column, values in bundle.row_offsets():
            offsets[column][:, index] += values.astype(np.uint8)
    return offsets


def baseline_scores(booster: Booster, tables: FeatureTables) -> Float64s:
    """Score the posts for a user whose values are all missing: (posts,)."""
    rows = np.full((tables.posts, len(tables.columns)), np.nan, dtype=np.float32)
    first = len(tables.user_features)
    rows[:, first : first + len(tables.post_features)] = tables.post_values
    return np.asarray(booster.predict(rows, raw_score=True)) if len(rows) else np.empty(0)


def build_post_blocks(tables: FeatureTables, blocked: Int64s, scores: Float64s) -> PostBlocks:
    """Put the posts that are not blocked into post blocks.

    Posts with high scores come first: then a user's threshold soon approaches
    its final value, and most later posts are skipped. The order affects only speed.

    Parameters
    ----------
    scores
        (posts,) from `baseline_scores`.
    """
    rows = np.setdiff1d(np.arange(tables.posts), blocked)
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    # One more column, all zero: without groupings all posts are in the same group.
    groups = np.zeros((len(rows), len(tables.affinities) + 1), dtype=np.int32)
    for index, affinity in enumerate(tables.affinities):
        groups[:, index] = affinity.group_of_post[rows]
    cells, cell_of_row = np.unique(groups, axis=0, return_inverse=True)
    found, cell_of_block = [np.empty((0, WIDTH), dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for cell in range(len(cells)):
        members = rows[cell_of_row == cell]
        found.append(np.pad(members, (0, -len(members) % WIDTH), constant_values=-1).reshape(-1, WIDTH))
        cell_of_block.append(np.full(len(found[-1]), cell))
    posts, cell_ids = np.concatenate(found), np.concatenate(cell_of_block)
    best = scores[posts[:, 0]]
    order = np.lexsort((cell_ids, best < np.quantile(best, 1 - _HIGH_SHARE) if len(best) else best))
    return PostBlocks(posts[order].astype(np.int32), cells[cell_ids[order], :-1])
