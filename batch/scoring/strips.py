"""Posts laid out in strips of 32 that belong to the same groups, the strongest strips first.

A user stands in the same rows of the forest's tables for a whole strip.
"""

from __future__ import annotations

from typing import Any

import lightgbm as lgb
import numpy as np
import numpy.typing as npt

from batch.arrays import Int32s
from batch.features.tables import FeatureTables
from batch.scoring.vectors import WIDTH

# Share of the strips, the strongest, whose posts are scored first.
_STRONG = 0.25


def strength(booster: lgb.Booster, tables: FeatureTables) -> npt.NDArray[np.float64]:
    """Score the posts for a user of whom nothing is known."""
    rows = np.full((len(tables.post_ids), len(tables.columns)), np.nan, dtype=np.float32)
    first = len(tables.user_features)
    rows[:, first : first + len(tables.post_features)] = tables.post_values
    return np.asarray(booster.predict(rows, raw_score=True)) if len(rows) else np.empty(0)


def lay_out_strips(
    tables: FeatureTables, blocked: npt.NDArray[np.int64], strength: npt.NDArray[np.float64]
) -> tuple[Int32s, Int32s]:
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
