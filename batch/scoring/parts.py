"""A forest cut into parts, and what each column alone says about a part.

A part is up to 31 neighbouring leaves of one tree. The leaf that a row falls
into lies in exactly one part of its tree, and the tree's other parts are worth
0 for that row; so the forest is a plain sum over parts.

A split that goes left rules out the leaves on its right, and the other way
round. All the splits that test one column keep, together, some leaves of the
part: a mask of bits that depends on that column's value alone. The AND of the
columns' masks leaves one bit, the row's leaf, or none. Bit 0 stands for no
leaf.

Of a column's values only the order among the thresholds matters, so they are
cut into *bins*: two values in one bin go the same way at every split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batch.arrays import Bools, Float32s, Float64s, Int64s
from batch.scoring.forest import ZERO, Forest, Tree

LEAVES = 31
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
        """Find the bin of each value; any shape. NaN sorts after infinity."""
        return np.searchsorted(self.ends, values)

    @property
    def examples(self) -> Float64s:
        """One value of each bin."""
        ends = np.where(np.abs(self.ends) <= ZERO, 0, self.ends)
        return np.append(ends, np.nan).astype(np.float64)


def column_bins(forest: Forest) -> list[Bins]:
    """Cut each column's values wherever some split of the forest changes its mind."""
    ends = [[np.array([np.inf])] for _ in range(forest.columns)]
    for tree in forest.trees:
        for split, column in enumerate(tree.columns):
            ends[column].append(tree.changes(split))
    return [Bins(np.unique(_round_down(np.concatenate(found)))) for found in ends]


def _round_down(ends: Float64s) -> Float32s:
    """Give the greatest float32 up to each end: a float32 is below both or above both.

    What LightGBM takes for zero lies in one bin, on zero's side of every end.
    """
    below_zero, zero = np.nextafter(-ZERO, -1), ZERO
    ends = np.where(np.abs(ends) <= ZERO, np.where(ends < 0, below_zero, zero), ends)
    with np.errstate(over="ignore"):
        rounded = ends.astype(np.float32)
    return np.where(rounded > ends, np.nextafter(rounded, np.float32(-np.inf)), rounded)


@dataclass(frozen=True)
class Part:
    """Up to 31 neighbouring leaves of a tree.

    Attributes
    ----------
    values
        (32,) float64 what the leaf of each bit is worth; 0 for bit 0.
    everything
        The mask that keeps every leaf.
    keep
        For each column that rules out some leaf: (bins,) the leaves it keeps.
    """

    values: Float64s
    everything: int
    keep: dict[int, Masks]


@dataclass(frozen=True)
class SplitTree:
    """A tree with its leaves put in order, left to right, ready to be cut.

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
        For each split: (bins,) whether a value in that bin goes left.
    """

    values: Float64s
    columns: Int64s
    spans: Int64s
    left: list[Bools]

    def part(self, first: int, end: int) -> Part:
        """Make the part that holds the leaves first to end - 1, at most 31."""
        everything = (1 << (end - first + 1)) - 2
        keep: dict[int, Masks] = {}
        spans = np.clip(self.spans, first, end) - first
        for split in np.flatnonzero(spans[:, 0] < spans[:, 2]):
            a, middle, b = spans[split].tolist()
            on_left, on_right = (1 << (middle + 1)) - (2 << a), (1 << (b + 1)) - (2 << middle)
            keeps_left, keeps_right = np.uint32(everything & ~on_right), np.uint32(everything & ~on_left)
            kept = np.where(self.left[split], keeps_left, keeps_right)
            column = int(self.columns[split])
            keep[column] = keep[column] & kept if column in keep else kept
        values = np.zeros(LEAVES + 1)
        values[1 : end - first + 1] = self.values[first:end]
        return Part(values, everything, keep)


def lay_out(tree: Tree, bins: list[Bins]) -> SplitTree:
    """Put a tree's leaves in order, so that what lies below a split is a run of leaves."""
    order: list[int] = []
    spans = np.zeros((len(tree.columns), 3), dtype=np.int64)
    waiting = [(0, 0)] if len(tree.columns) else [(-1, 0)]
    while waiting:
        node, stage = waiting.pop()
        if node < 0:
            order.append(~node)
            continue
        spans[node, stage] = len(order)
        if stage < 2:
            child = int(tree.right[node] if stage else tree.left[node])
            waiting += [(node, stage + 1), (child, 0)]
    left = [tree.goes_left(split, bins[column].examples) for split, column in enumerate(tree.columns)]
    return SplitTree(tree.values[order], tree.columns, spans, left)
