"""Row sums: what each row of each bundle adds to the scores of 32 posts.

The leaf of a pair in a leaf block is the one bit of the AND of two masks: that
of the user's row and that of the post. A block has few distinct masks over its
rows. So for each post block: look up the leaf value of each distinct mask with
each post, then sum these values over the leaf blocks of each row.

Leaf values are integers, multiples of a quantum, so that their sums are exact
in any order (see batch/scoring/compile.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from batch.arrays import Int32s, Int64s
from batch.jit import jit
from batch.scoring.bundles import MAX_ROWS, Bundle
from batch.scoring.leaf_blocks import MAX_LEAVES, LeafBlock, Masks
from batch.scoring.simd import WIDTH, set_sum_of_rows

# Multiplied by this and shifted right by 27, the powers of two below 2**32 give 32 different numbers. Bit 0,
# which stands for no leaf, and a mask without bits both give 0.
_DE_BRUIJN = 0x077CB531

# Distance between the first rows of two bundles. It is odd: otherwise equal row ids would share cache lines.
STRIDE = MAX_ROWS + 5


class LeafTables(NamedTuple):
    """The leaf blocks of some bundles as flat arrays, one bundle after the other.

    Attributes
    ----------
    bundles
        Number of bundles.
    values
        (leaf blocks, 32) int32 quantised leaf values, in the order of the
        de Bruijn numbers of their bits.
    masks, mask_starts
        Each leaf block's distinct masks; (leaf blocks + 1,) bounds.
    keep, keep_starts
        Leaves that a leaf block keeps in each bin of a post column; bounds of
        each (leaf block, column).
    columns, column_starts
        The post columns in a leaf block's `keep`; (leaf blocks + 1,) bounds.
    members, member_starts
        The masks whose values a row sums, one for each leaf block; bounds of each row.
    rows
        Index of each row in the table of row sums.
    """

    bundles: int
    values: Int32s
    masks: Masks
    mask_starts: Int64s
    keep: Masks
    keep_starts: Int64s
    columns: Int64s
    column_starts: Int64s
    members: Masks
    member_starts: Int64s
    rows: Int64s

    @classmethod
    def build(cls, bundles: list[Bundle], post_columns: list[int], quantum: float) -> LeafTables:
        """Flatten bundles; only `post_columns` depend on the post."""
        blocks = [block for bundle in bundles for block in bundle.blocks]
        masks, members, rows = _find_distinct_masks(bundles)
        of_block = [[column for column in post_columns if column in block.keep] for block in blocks]
        keep = [block.keep[column] for block, found in zip(blocks, of_block, strict=True) for column in found]
        return cls(
            bundles=len(bundles),
            values=_quantise(blocks, quantum),
            masks=_concatenate(masks, np.uint32),
            mask_starts=_bounds(map(len, masks)),
            keep=_concatenate(keep, np.uint32),
            keep_starts=_bounds(map(len, keep)),
            columns=np.array([post_columns.index(c) for found in of_block for c in found], dtype=np.int64),
            column_starts=_bounds(map(len, of_block)),
            members=_concatenate([row for bundle in members for row in bundle], np.uint32),
            member_starts=_bounds(len(row) for bundle in members for row in bundle),
            rows=np.array(rows, dtype=np.int64),
        )

    def compute_row_sums(self, bins: Int32s, mask_values: Int32s, row_sums: Int32s) -> None:
        """Compute the sum of each row of each bundle with each post of a post block.

        Parameters
        ----------
        bins
            (post columns, 32) bins of the posts' values.
        mask_values, row_sums
            (masks, 32) scratch and (bundles * STRIDE, 32) result, or more rows;
            the rows of bundle b start at b * STRIDE.
        """
        _look_up_mask_values(self, bins, mask_values)
        _sum_mask_values(self, mask_values, row_sums)


def _quantise(blocks: list[LeafBlock], quantum: float) -> Int32s:
    order = ((1 << np.arange(MAX_LEAVES + 1, dtype=np.uint64)) * _DE_BRUIJN & 0xFFFFFFFF) >> 27
    values = np.zeros((len(blocks), MAX_LEAVES + 1), dtype=np.int32)
    for index, block in enumerate(blocks):
        values[index, order] = np.rint(block.values / quantum)
    return values


class _DistinctMasks(NamedTuple):
    """Distinct masks of each leaf block.

    Attributes
    ----------
    masks
        For each leaf block: its distinct masks.
    members
        For each bundle: (rows, leaf blocks) indices of masks, counted over all leaf blocks.
    rows
        Index of each row in the table of row sums.
    """

    masks: list[Masks]
    members: list[Masks]
    rows: list[int]


def _find_distinct_masks(bundles: list[Bundle]) -> _DistinctMasks:
    masks: list[Masks] = []
    members: list[Masks] = []
    rows: list[int] = []
    count = 0
    for index, bundle in enumerate(bundles):
        row_masks = bundle.row_masks()
        mask_ids = np.empty(row_masks.shape, dtype=np.uint32)
        for block in range(len(bundle.blocks)):
            distinct, mask_id = np.unique(row_masks[:, block], return_inverse=True)
            masks.append(distinct)
            mask_ids[:, block] = count + mask_id
            count += len(distinct)
        members.append(mask_ids)
        rows += range(index * STRIDE, index * STRIDE + len(mask_ids))
    return _DistinctMasks(masks, members, rows)


def _concatenate(arrays: list[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *arrays])


def _bounds(lengths: Iterable[int]) -> Int64s:
    return np.array([0, *itertools.accumulate(lengths)], dtype=np.int64)


@jit
def _look_up_mask_values(tables: LeafTables, bins: Int32s, mask_values: Int32s) -> None:
    """Look up the leaf value of each mask of each leaf block with each post: (masks, 32)."""
    values, masks, mask_starts = tables.values, tables.masks, tables.mask_starts
    keep, keep_starts = tables.keep, tables.keep_starts
    columns, column_starts = tables.columns, tables.column_starts
    kept = np.empty(WIDTH, dtype=np.uint32)
    for block in range(len(values)):
        for lane in range(WIDTH):
            kept[lane] = np.uint32(0xFFFFFFFF)
        for i in range(column_starts[block], column_starts[block + 1]):
            for lane in range(WIDTH):
                kept[lane] &= keep[keep_starts[i] + bins[columns[i], lane]]
        for mask in range(mask_starts[block], mask_starts[block + 1]):
            for lane in range(WIDTH):
                leaf = np.uint32((masks[mask] & kept[lane]) * np.uint32(_DE_BRUIJN)) >> np.uint32(27)
                mask_values[mask, lane] = values[block, leaf]


@jit
def _sum_mask_values(tables: LeafTables, mask_values: Int32s, row_sums: Int32s) -> None:
    members, member_starts, rows = tables.members, tables.member_starts, tables.rows
    for row in range(len(rows)):
        start = member_starts[row]
        set_sum_of_rows(mask_values, 0, members, start, member_starts[row + 1] - start, row_sums, rows[row])
