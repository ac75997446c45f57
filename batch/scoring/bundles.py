"""Leaf blocks joined into bundles, each with one short table of rows.

For the user and affinity columns together, a leaf block has few combinations of
masks. Number them: a (user, group of posts) pair then has one *row id* in the
block. A row id is a number of mixed radix: each column adds an offset, which
depends on the bin of its value only.

Leaf blocks that test the same columns at similar thresholds have few
combinations together, too. They are joined into a *bundle*, so that one row
holds the sum of all its leaf blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from batch.arrays import Int64s
from batch.scoring.leaf_blocks import MAX_LEAVES, LeafBlock, Masks, OrderedTree
from contract.errors import ModelError

# A row id fits a byte. With more rows a bundle would join more trees, but the row sums would no longer
# fit the processor's cache.
MAX_ROWS = 256

# A leaf block may join only these bundles: the latest ones, if they have few enough rows.
_MAX_OPEN = 32
_MAX_OPEN_ROWS = 192


@dataclass(frozen=True)
class Digit:
    """One digit of a bundle's row ids.

    Attributes
    ----------
    values
        For each column that the digit depends on: (bins,) int64 what its bin adds to the digit.
    masks
        (base, leaf blocks) leaves of each block that each value of the digit keeps.
    """

    values: dict[int, Int64s]
    masks: Masks


@dataclass(frozen=True)
class Bundle:
    """Leaf blocks that share a row id; `digits` has the most significant digit first."""

    blocks: tuple[LeafBlock, ...]
    digits: tuple[Digit, ...]

    @cached_property
    def row_count(self) -> int:
        """Number of rows: the product of the digits' bases."""
        return math.prod(len(digit.masks) for digit in self.digits)

    def row_masks(self) -> Masks:
        """Return (rows, leaf blocks) the leaves of each block that each row keeps."""
        rows = np.array([[block.all_leaves for block in self.blocks]], dtype=np.uint32)
        for digit in self.digits:
            rows = (rows[:, None, :] & digit.masks[None, :, :]).reshape(-1, len(self.blocks))
        return rows

    def row_offsets(self) -> Iterator[tuple[int, Int64s]]:
        """Yield what each column adds to the row id: column, (bins,) offsets."""
        place_value = self.row_count
        for digit in self.digits:
            place_value //= len(digit.masks)
            for column, values in digit.values.items():
                yield column, values * place_value


def split_tree(tree: OrderedTree, columns: frozenset[int]) -> Iterator[Bundle]:
    """Cut a tree into leaf blocks, and yield each as a bundle with its rows over some columns.

    Blocks with too many leaves or rows are halved.

    Raises
    ------
    ModelError
        A single leaf has too many rows.
    """
    stack = [(0, len(tree.values))]
    while stack:
        first, end = stack.pop()
        bundle = _make_bundle(tree.leaf_block(first, end), columns) if end - first <= MAX_LEAVES else None
        if bundle and bundle.row_count <= MAX_ROWS:
            yield bundle
        elif end - first > 1:
            middle = (first + end) // 2
            stack += [(middle, end), (first, middle)]
        else:
            raise ModelError(
                f"a leaf of the model depends on {MAX_ROWS} or more columns of users and affinities;"
                " limit max_depth"
            )


def _make_bundle(block: LeafBlock, columns: frozenset[int]) -> Bundle:
    """Make the bundle of a single leaf block, with its rows over some columns.

    A column that keeps either all leaves or none is a *gate*. All gates
    together are one digit: the number of gates that keep no leaf.
    """
    digits, gates = [], {}
    for column in sorted(columns & block.keep.keys()):
        masks, values = np.unique(block.keep[column], return_inverse=True)
        if set(masks.tolist()) <= {0, block.all_leaves}:
            gates[column] = (block.keep[column] == 0).astype(np.int64)
        else:
            digits.append(Digit({column: values}, masks[:, None]))
    if gates:
        masks = np.zeros((len(gates) + 1, 1), dtype=np.uint32)
        masks[0] = block.all_leaves
        digits.append(Digit(gates, masks))
    return Bundle((block,), tuple(digits))


def merge_bundles(bundles: Iterable[Bundle]) -> list[Bundle]:
    """Merge bundles as long as no merged one exceeds MAX_ROWS rows; similar ones merge first."""
    closed: list[Bundle] = []
    open_: list[Bundle] = []
    for bundle in sorted(bundles, key=lambda bundle: -bundle.row_count):
        rows = [_count_merged_rows(other, bundle) for other in open_]
        fitting = [index for index, count in enumerate(rows) if count <= MAX_ROWS]
        if fitting:
            best = min(fitting, key=lambda index: rows[index] / open_[index].row_count)
            bundle = _merge(open_.pop(best), bundle)
        (open_ if bundle.row_count <= _MAX_OPEN_ROWS else closed).append(bundle)
        closed += open_[:-_MAX_OPEN]
        open_ = open_[-_MAX_OPEN:]
    return closed + open_


def _count_merged_rows(first: Bundle, second: Bundle) -> int:
    count = first.row_count * second.row_count
    for one, other in _pair_digits(first, second):
        (values,), (others,) = one.values.values(), other.values.values()
        base = len(other.masks)
        occurring = int(np.count_nonzero(np.bincount(values * base + others)))
        count = count // (len(one.masks) * base) * occurring
    return count


def _merge(first: Bundle, second: Bundle) -> Bundle:
    """Merge two bundles; two digits of the same column become one digit."""
    digits = []
    pairs = _pair_digits(first, second)
    for one, other in pairs:
        ((column, values),), (others,) = one.values.items(), other.values.values()
        base = len(other.masks)
        occurring, merged = np.unique(values * base + others, return_inverse=True)
        masks = np.concatenate([one.masks[occurring // base], other.masks[occurring % base]], axis=1)
        digits.append(Digit({column: merged}, masks))
    paired = [id(digit) for pair in pairs for digit in pair]
    for bundle, before, after in ((first, 0, len(second.blocks)), (second, len(first.blocks), 0)):
        for digit in bundle.digits:
            if id(digit) not in paired:
                padded = np.pad(digit.masks, ((0, 0), (before, after)), constant_values=2**32 - 1)
                digits.append(Digit(digit.values, padded))
    return Bundle(first.blocks + second.blocks, tuple(digits))


def _pair_digits(first: Bundle, second: Bundle) -> list[tuple[Digit, Digit]]:
    """Pair the digits of two bundles that depend on the same single column."""
    of_column = {next(iter(digit.values)): digit for digit in second.digits if len(digit.values) == 1}
    return [
        (digit, of_column[column])
        for digit in first.digits
        if len(digit.values) == 1
        for column in digit.values
        if column in of_column
    ]
