"""Everything about the forest and the posts that the scoring of any user shares.

`prepare` makes flat arrays of a Booster and the posts, a few MiB that pickle to
another process: what each bin of a user's or an affinity's column adds to the
bundles' row numbers, what the rows are worth (batch/scoring/leaf_tables.py), and the posts in
*strips* of 32 that belong to the same groups, so that a user stands in the same
rows for a whole strip.

Leaf values become whole numbers of one small *step*, so that their sums are
exact in any order. For T trees the step is S / (2**31 - 1 - T), where S sums,
over the trees, half the distance between the least and the greatest leaf; the
middles between them go into one `offset`. Each tree is off by half a step at
most, the forest by T * S / 2**32: 5e-7 for 200 trees and S = 10, 5e-6 for 2,000;
as the trees' errors are independent, by far less. Then the score is rounded to
float32, with its dot product, which is added up in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import lightgbm as lgb
import numpy as np
import numpy.typing as npt

from batch.arrays import Bytes, Float32s, Float64s, Int32s, Int64s
from batch.features.tables import FeatureTables, Kind
from batch.scoring.bundles import Bundle, bundle_up, cut
from batch.scoring.forest import Forest, read_forest
from batch.scoring.leaf_tables import STRIDE, PartTables
from batch.scoring.parts import Bins, column_bins, lay_out
from batch.scoring.simd import WIDTH
from contract.errors import ModelError

# Row numbers are added up as bytes, four to a number of a vector.
BYTES_PER_VECTOR = 4 * WIDTH

# So many bundles' rows stay near the processor while a chunk's users are scored; each time costs a pass.
BUNDLES_AT_ONCE = 128

# A model is refused whose forest may be further off than this, at so many standard deviations.
TOLERANCE, SIGMAS = 1e-5, 6


@dataclass(frozen=True)
class PostSide:
    """The forest and the posts, ready to score any users.

    Attributes
    ----------
    step, offset
        A forest's raw score is its steps * step + offset.
    turns
        What rows are worth, BUNDLES_AT_ONCE bundles in a turn.
    user_bins, user_places
        The bins of each user column; (bins, bundles) what a bin adds to the row numbers.
    affinity_bins
        The bins of the affinity columns, grouping by grouping.
    affinity_places
        (bins, bundles), one affinity column's after another's.
    posts
        (strips, 32) int32 places of the posts in the tables; -1 pads.
    groups
        (strips, groupings) int32 groups that all posts of a strip belong to.
    bins
        (strips, post columns, 32) int32 bins of the posts' values.
    factors
        (strips, factors, 32) float32; no factors if there is no dot product.
    """

    step: float
    offset: float
    turns: tuple[PartTables, ...]
    user_bins: tuple[Bins, ...]
    user_places: tuple[Bytes, ...]
    affinity_bins: tuple[tuple[Bins, ...], ...]
    affinity_places: Bytes
    posts: Int32s
    groups: Int32s
    bins: Int32s
    factors: Float32s

    @property
    def work_rows(self) -> tuple[int, int]:
        """How many masks, and rows of a table, the largest turn has: 32 int32 each while users are scored."""
        masks = max((len(turn.masks) for turn in self.turns), default=0)
        return masks, max((turn.bundles for turn in self.turns), default=0) * STRIDE


def prepare(
    booster: lgb.Booster,
    tables: FeatureTables,
    post_factors: Float32s | None,
    blocked: Int64s,
) -> PostSide:
    """Make the post side of a model.

    Parameters
    ----------
    booster
        Trained on `tables.columns`.
    tables
        Of the users, nothing is read.
    post_factors
        (posts, factors), or None.
    blocked
        Rows of posts that no list may hold.

    Raises
    ------
    ModelError
        The model cannot be scored this way, or reads other columns.
    """
    forest = read_forest(booster)
    kinds = [column.kind for column in tables.columns]
    if forest.columns != len(kinds):
        raise ModelError(
            f"the model reads {forest.columns} columns, the features have {len(kinds)};"
            " train it on these features"
        )
    bins = column_bins(forest)
    post_columns = [place for place, kind in enumerate(kinds) if kind is Kind.POST]
    bundles, step, offset = _bundles(forest, bins, frozenset(range(len(kinds))) - set(post_columns))
    users, before_affinities = len(tables.user_features), len(tables.user_features) + len(post_columns)
    places = _places(bundles, bins)
    posts, groups = lay_out_strips(tables, blocked, strength(booster, tables))
    affine = iter(bins[before_affinities:])
    return PostSide(
        step=step,
        offset=offset,
        turns=tuple(
            PartTables.of(bundles[start : start + BUNDLES_AT_ONCE], post_columns, step)
            for start in range(0, len(bundles), BUNDLES_AT_ONCE)
        ),
        user_bins=tuple(bins[:users]),
        user_places=tuple(places[:users]),
        affinity_bins=tuple(tuple(next(affine) for _ in a.features) for a in tables.affinities),
        affinity_places=np.concatenate([places[0][:0], *places[before_affinities:]]),
        posts=posts,
        groups=groups,
        bins=by_strip(
            [bins[c].find(tables.post_values[:, c - users]) for c in post_columns], posts, np.int32
        ),
        factors=by_strip([] if post_factors is None else list(post_factors.T), posts, np.float32),
    )


def _bundles(forest: Forest, bins: list[Bins], columns: frozenset[int]) -> tuple[list[Bundle], float, float]:
    """Cut the forest and bundle its parts by the rows over some columns; also the step and the offset."""
    spread = offset = 0.0
    singles: list[Bundle] = []
    for tree in forest.trees:
        least, greatest = float(tree.values.min()), float(tree.values.max())
        middle = (least + greatest) / 2
        offset += middle
        spread += (greatest - least) / 2
        if least < greatest:
            singles += cut(lay_out(replace(tree, values=tree.values - middle), bins), columns)
    step = spread / (2**31 - 1 - len(forest.trees)) if spread else 1.0
    if spread and SIGMAS * step * math.sqrt(len(forest.trees) / 12) > TOLERANCE:
        raise ModelError(
            f"the leaves of the model lie so far apart (together {spread:.3g}) that its scores cannot be told"
            f" to {TOLERANCE}; train it with a lower learning_rate, or with more regularisation"
        )
    return bundle_up(singles), step, offset


def _places(bundles: list[Bundle], bins: list[Bins]) -> list[Bytes]:
    """Lay out what each bin of each column adds to the row numbers: (bins, bundles), in whole vectors."""
    width = (len(bundles) // BYTES_PER_VECTOR + 1) * BYTES_PER_VECTOR
    places = [np.zeros((len(column.ends) + 1, width), dtype=np.uint8) for column in bins]
    for number, bundle in enumerate(bundles):
        for column, values in bundle.places():
            places[column][:, number] += values.astype(np.uint8)
    return places


# Share of the strips, the strongest, whose posts are scored first.
_STRONG = 0.25


def strength(booster: lgb.Booster, tables: FeatureTables) -> Float64s:
    """Score the posts for a user of whom nothing is known."""
    rows = np.full((len(tables.post_ids), len(tables.columns)), np.nan, dtype=np.float32)
    first = len(tables.user_features)
    rows[:, first : first + len(tables.post_features)] = tables.post_values
    return np.asarray(booster.predict(rows, raw_score=True)) if len(rows) else np.empty(0)


def lay_out_strips(tables: FeatureTables, blocked: Int64s, strength: Float64s) -> tuple[Int32s, Int32s]:
    """Lay out the posts, less those blocked, in strips: places and groups.

    The strongest come first, as a user's list is then soon close to final, and
    few posts after it need a second look. Only speed depends on that.
    """
    places = np.setdiff1d(np.arange(len(tables.post_ids)), blocked)
    places = places[np.argsort(-strength[places], kind="stable")]
    # A column more than there are groupings: all posts are of one group where there is none.
    groups = np.zeros((len(places), len(tables.affinities) + 1), dtype=np.int32)
    for number, affinity in enumerate(tables.affinities):
        groups[:, number] = affinity.group_of_post[places]
    cells, cell = np.unique(groups, axis=0, return_inverse=True)
    strips, of_cell = [np.empty((0, WIDTH), dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for number in range(len(cells)):
        members = places[cell == number]
        strips.append(np.pad(members, (0, -len(members) % WIDTH), constant_values=-1).reshape(-1, WIDTH))
        of_cell.append(np.full(len(strips[-1]), number))
    laid, which = np.concatenate(strips), np.concatenate(of_cell)
    best = strength[laid[:, 0]]
    order = np.lexsort((which, best < np.quantile(best, 1 - _STRONG) if len(best) else best))
    return laid[order].astype(np.int32), cells[which[order], :-1]


def by_strip(columns: list[npt.NDArray[Any]], strips: Int32s, dtype: Any) -> npt.NDArray[Any]:
    """Lay out columns of post values as (strips, columns, 32); a pad has some post's values."""
    laid = np.empty((len(strips), len(columns), WIDTH), dtype=dtype)
    for number, column in enumerate(columns):
        laid[:, number] = column[strips]
    return laid
