"""What the parts of the forest are worth with some posts: from leaf masks to a table of rows.

A part's leaf for a pair is the one bit common to the mask of the row that the
user stands in and the mask of the post. A part has few distinct masks over its
rows, so for a strip of posts: work out each distinct mask's worth with each
post, then add up, for each row of a bundle, its parts.

Leaf values are whole numbers of one small step, so that sums of them are exact
in any order (see batch/scoring/compile.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batch.arrays import Int32s, Int64s
from batch.scoring.bundles import MOST_ROWS, Bundle
from batch.scoring.parts import LEAVES, Masks, Part
from batch.scoring.simd import WIDTH, add_rows, compiled

# Multiplied by this and shifted right by 27, the powers of two below 2**32 give 32 different numbers: 0 for
# bit 0, which stands for no leaf, and for no bit.
_DE_BRUIJN = 0x077CB531

# From one bundle's rows to the next's: odd, or equal row numbers would fall into the same lines of the cache.
STRIDE = MOST_ROWS + 5


@dataclass(frozen=True)
class PartTables:
    """The parts of some bundles, one bundle's after another's, as flat arrays.

    Attributes
    ----------
    bundles
        How many bundles there are.
    values
        (parts, 32) int32 what each leaf is worth, in steps, in the order of the
        de Bruijn numbers of their bits.
    masks, mask_starts
        Each part's distinct masks; (parts + 1,) bounds.
    keeps, keep_starts
        Leaves that a part keeps in each bin of a post column; bounds of each
        (part, column).
    columns, column_starts
        The post columns that a part has keeps for; (parts + 1,) bounds.
    members, member_starts
        The masks that a row of a bundle adds up, one for each part; bounds of each row.
    rows
        Where each row lies in the table.
    """

    bundles: int
    values: Int32s
    masks: Masks
    mask_starts: Int64s
    keeps: Masks
    keep_starts: Int64s
    columns: Int64s
    column_starts: Int64s
    members: Masks
    member_starts: Int64s
    rows: Int64s

    @classmethod
    def of(cls, bundles: list[Bundle], post_columns: list[int], step: float) -> PartTables:
        """Lay out bundles, with leaf values in steps; only `post_columns` have a say on posts."""
        parts = [part for bundle in bundles for part in bundle.parts]
        masks, members, rows = _distinct_masks(bundles)
        said = [[column for column in post_columns if column in part.keep] for part in parts]
        keeps = [part.keep[column] for part, columns in zip(parts, said, strict=True) for column in columns]
        return cls(
            bundles=len(bundles),
            values=_in_steps(parts, step),
            masks=_flat(masks, np.uint32),
            mask_starts=_bounds(map(len, masks)),
            keeps=_flat(keeps, np.uint32),
            keep_starts=_bounds(map(len, keeps)),
            columns=np.array([post_columns.index(c) for columns in said for c in columns], dtype=np.int64),
            column_starts=_bounds(map(len, said)),
            members=_flat([row for bundle in members for row in bundle], np.uint32),
            member_starts=_bounds(len(row) for bundle in members for row in bundle),
            rows=np.array(rows, dtype=np.int64),
        )

    def fill(self, bins: Int32s, worth: Int32s, table: Int32s) -> None:
        """Work out what each row of each bundle is worth with each post of a strip.

        Parameters
        ----------
        bins
            (post columns, 32) bins of the posts' values.
        worth, table
            (masks, 32) and (bundles * STRIDE, 32) at least; bundle b's rows
            start at b * STRIDE of the table.
        """
        _fill_worth(
            self.values, self.masks, self.mask_starts, self.keeps, self.keep_starts,
            self.columns, self.column_starts, bins, worth,
        )  # fmt: skip
        table[: self.bundles * STRIDE] = 0
        _add_up(worth, self.members, self.member_starts, self.rows, table)


def _in_steps(parts: list[Part], step: float) -> Int32s:
    order = ((1 << np.arange(LEAVES + 1, dtype=np.uint64)) * _DE_BRUIJN & 0xFFFFFFFF) >> 27
    values = np.zeros((len(parts), LEAVES + 1), dtype=np.int32)
    for number, part in enumerate(parts):
        values[number, order] = np.rint(part.values / step)
    return values


def _distinct_masks(bundles: list[Bundle]) -> tuple[list[Masks], list[npt.NDArray[Any]], list[int]]:
    """Find each part's distinct masks; for each bundle (rows, parts) places among them; each row's place."""
    masks: list[Masks] = []
    members: list[npt.NDArray[Any]] = []
    rows: list[int] = []
    before = 0
    for number, bundle in enumerate(bundles):
        of_rows = bundle.masks()
        places = np.empty(of_rows.shape, dtype=np.uint32)
        for part in range(len(bundle.parts)):
            distinct, place = np.unique(of_rows[:, part], return_inverse=True)
            masks.append(distinct)
            places[:, part] = before + place
            before += len(distinct)
        members.append(places)
        rows += range(number * STRIDE, number * STRIDE + len(places))
    return masks, members, rows


def _flat(pieces: list[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *pieces])


def _bounds(lengths: Iterable[int]) -> Int64s:
    return np.array([0, *itertools.accumulate(lengths)], dtype=np.int64)


@compiled
def _fill_worth(
    values: Int32s,
    masks: Masks,
    mask_starts: Int64s,
    keeps: Masks,
    keep_starts: Int64s,
    columns: Int64s,
    column_starts: Int64s,
    bins: Int32s,
    worth: Int32s,
) -> None:
    """Work out what each mask of each part is worth with each post of a strip: (masks, 32)."""
    kept = np.empty(WIDTH, dtype=np.uint32)
    for part in range(len(values)):
        for lane in range(WIDTH):
            kept[lane] = np.uint32(0xFFFFFFFF)
        for said in range(column_starts[part], column_starts[part + 1]):
            for lane in range(WIDTH):
                kept[lane] &= keeps[keep_starts[said] + bins[columns[said], lane]]
        for mask in range(mask_starts[part], mask_starts[part + 1]):
            for lane in range(WIDTH):
                leaf = np.uint32((masks[mask] & kept[lane]) * np.uint32(_DE_BRUIJN)) >> np.uint32(27)
                worth[mask, lane] = values[part, leaf]


@compiled
def _add_up(worth: Int32s, members: Masks, member_starts: Int64s, rows: Int64s, table: Int32s) -> None:
    """Add up each row's parts."""
    for row in range(len(rows)):
        start = member_starts[row]
        add_rows(worth, 0, members, start, member_starts[row + 1] - start, table, rows[row])
