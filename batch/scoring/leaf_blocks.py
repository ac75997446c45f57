"""The forest cut into leaf blocks, and the leaves that each value of a column keeps.

A leaf block is up to 31 neighbouring leaves of one tree. The leaf of a row lies
in exactly one block of its tree, and the tree's other blocks add 0 to the row's
score. So the forest is a plain sum over leaf blocks.

A split that sends a row left excludes the leaves of its right child, and vice
versa. All the splits that test one column together keep some leaves of a block:
a bit mask that depends on the value of that column only. The AND of the masks
of all columns has one bit, the row's leaf, or no bit (QuickScorer; Lucchese et
al., 2015). Bit 0 stands for no leaf.

Only the order of a column's values among the thresholds matters. So values are
cut into *bins*: all values of a bin go the same way at every split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batch.arrays import Bools, Float32s, Float64s, Int64s
from batch.scoring.forest import ZERO, Forest, Tree

MAX_LEAVES = 31
Masks = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Bins:
    """The bins of one column.

    Attributes
    ----------
    ends
        (bins - 1,) float32, ascending, the last infinity: the greatest value
        of each bin. One more bin, the last, holds NaN.
    """

    ends: Float32s

    def find(self, values: Float32s) -> npt.NDArray[np.intp]:
        """Return the bin of each value; any shape. NaN sorts after infinity."""
        return np.searchsorted(self.ends, values)

    @property
    def representatives(self) -> Float64s:
        """(bins,) one value of each bin."""
        ends = np.where(np.abs(self.ends) <= ZERO, 0, self.ends)
        return np.append(ends, np.nan).astype(np.float64)


def cut_into_bins(forest: Forest) -> list[Bins]:
    """Cut each column's values at the split points of all trees."""
    ends = [[np.array([np.inf])] for _ in range(forest.columns)]
    for tree in forest.trees:
        for split, column in enumerate(tree.columns):
            ends[column].append(tree.split_points(split))
    return [Bins(np.unique(_round_down(np.concatenate(found)))) for found in ends]


def _round_down(ends: Float64s) -> Float32s:
    """Return the greatest float32 up to each end; it divides the float32 numbers as the end does.

    The values that LightGBM treats as zero lie in one bin.
    """
    below_zero, zero = np.nextafter(-ZERO, -1), ZERO
    ends = np.where(np.abs(ends) <= ZERO, np.where(ends < 0, below_zero, zero), ends)
    with np.errstate(over="ignore"):
        rounded = ends.astype(np.float32)
    return np.where(rounded > ends, np.nextafter(rounded, np.float32(-np.inf)), rounded)


@dataclass(frozen=True)
class LeafBlock:
    """Up to 31 neighbouring leaves of a tree.

    Attributes
    ----------
    values
        (32,) float64 leaf value of each bit; 0 for bit 0.
    all_leaves
        The mask that keeps every leaf.
    keep
        For each column that excludes some leaf: (bins,) the leaves it keeps.
    """

    values: Float64s
    all_leaves: int
    keep: dict[int, Masks]


@dataclass(frozen=True)
class OrderedTree:
    """A tree whose leaves are numbered from left to right, so that they can be cut into blocks.

    Attributes
    ----------
    values
        (leaves,) float64 leaf values, left to right.
    columns
        (splits,) column that each split tests.
    spans
        (splits, 3) first leaf below the split, first leaf of its right child,
        and the leaf after its last.
    left
        For each split: (bins,) whether the values of a bin go left.
    """

    values: Float64s
    columns: Int64s
    spans: Int64s
    left: list[Bools]

    def leaf_block(self, first: int, end: int) -> LeafBlock:
        """Return the block of the leaves first to end - 1, at most 31."""
        all_leaves = (1 << (end - first + 1)) - 2
        keep: dict[int, Masks] = {}
        spans = np.clip(self.spans, first, end) - first
        for split in np.flatnonzero(spans[:, 0] < spans[:, 2]):
            a, middle, b = spans[split].tolist()
            on_left, on_right = (1 << (middle + 1)) - (2 << a), (1 << (b + 1)) - (2 << middle)
            keeps_left, keeps_right = np.uint32(all_leaves & ~on_right), np.uint32(all_leaves & ~on_left)
            kept = np.where(self.left[split], keeps_left, keeps_right)
            column = int(self.columns[split])
            keep[column] = keep[column] & kept if column in keep else kept
        values = np.zeros(MAX_LEAVES + 1)
        values[1 : end - first + 1] = self.values[first:end]
        return LeafBlock(values, all_leaves, keep)


def order_leaves(tree: Tree, bins: list[Bins]) -> OrderedTree:
    """Number a tree's leaves from left to right: the leaves below a split become consecutive."""
    order: list[int] = []
    spans = np.zeros((len(tree.columns), 3), dtype=np.int64)
    stack = [(0, 0)] if len(tree.columns) else [(-1, 0)]
    while stack:
        node, stage = stack.pop()
        if node < 0:
            order.append(~node)
            continue
        spans[node, stage] = len(order)
        if stage < 2:
            child = int(tree.right[node] if stage else tree.left[node])
            stack += [(node, stage + 1), (child, 0)]
    left = [tree.goes_left(split, bins[column].representatives) for split, column in enumerate(tree.columns)]
    return OrderedTree(tree.values[order], tree.columns, spans, left)
