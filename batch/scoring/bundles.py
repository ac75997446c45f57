"""Parts of the forest gathered into bundles, each with one short table of rows.

Leave the posts aside. For the columns of the user and of the affinities, a
part has few combinations of masks; number them, and a (user, group of posts)
pair stands in one *row* of the part. Its number is a sum, like that of a number
from its digits: each column adds its own place value, found by its bin.

Parts that test the same columns at much the same thresholds have few
combinations together, too. They are gathered into a *bundle*, so that one row
gives the sum of all its parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from batch.arrays import Int64s
from batch.scoring.parts import LEAVES, Masks, Part, SplitTree
from contract.errors import ModelError

# A row number fits a byte. More rows would gather more trees, but a strip's tables would not stay in cache.
MOST_ROWS = 256

# Where a part is tried: the latest bundles with room for more.
_OPEN = 32
_OPEN_ROWS = 192


@dataclass(frozen=True)
class Digit:
    """One digit of a bundle's row number.

    Attributes
    ----------
    values
        For each column that has a say: (bins,) int64 what it adds to the digit.
    masks
        (base, parts) leaves of each part that each value of the digit keeps.
    """

    values: dict[int, Int64s]
    masks: Masks


@dataclass(frozen=True)
class Bundle:
    """Parts that share a row number.

    Attributes
    ----------
    parts
        The parts.
    digits
        The digits of the row number, the highest first.
    """

    parts: tuple[Part, ...]
    digits: tuple[Digit, ...]

    @cached_property
    def rows(self) -> int:
        """How many rows there are: the product of the digits' bases."""
        return math.prod(len(digit.masks) for digit in self.digits)

    def masks(self) -> Masks:
        """Lay out the rows: (rows, parts) the leaves of each part that each row keeps."""
        rows = np.array([[part.everything for part in self.parts]], dtype=np.uint32)
        for digit in self.digits:
            rows = (rows[:, None, :] & digit.masks[None, :, :]).reshape(-1, len(self.parts))
        return rows

    def places(self) -> Iterator[tuple[int, Int64s]]:
        """Give what each column adds to the row number: column, (bins,) place values."""
        place = self.rows
        for digit in self.digits:
            place //= len(digit.masks)
            for column, values in digit.values.items():
                yield column, values * place


def _bundle_of(part: Part, columns: frozenset[int]) -> Bundle:
    """Make a part's own bundle, with its rows over some columns.

    A column that keeps either every leaf or none is a gate. One digit counts
    the closed gates, however many gates there are.
    """
    digits, gates = [], {}
    for column in sorted(columns & part.keep.keys()):
        masks, values = np.unique(part.keep[column], return_inverse=True)
        if set(masks.tolist()) <= {0, part.everything}:
            gates[column] = (part.keep[column] == 0).astype(np.int64)
        else:
            digits.append(Digit({column: values}, masks[:, None]))
    if gates:
        masks = np.zeros((len(gates) + 1, 1), dtype=np.uint32)
        masks[0] = part.everything
        digits.append(Digit(gates, masks))
    return Bundle((part,), tuple(digits))


def cut(tree: SplitTree, columns: frozenset[int]) -> Iterator[Bundle]:
    """Cut a tree into parts, each the bundle of its own, halving what has too many leaves or rows.

    Raises
    ------
    ModelError
        A single leaf has too many rows.
    """
    waiting = [(0, len(tree.values))]
    while waiting:
        first, end = waiting.pop()
        bundle = _bundle_of(tree.part(first, end), columns) if end - first <= LEAVES else None
        if bundle and bundle.rows <= MOST_ROWS:
            yield bundle
        elif end - first > 1:
            middle = (first + end) // 2
            waiting += [(middle, end), (first, middle)]
        else:
            raise ModelError(
                f"a leaf of the model depends on {MOST_ROWS} or more columns of users and affinities;"
                " limit max_depth"
            )


def bundle_up(bundles: Iterable[Bundle]) -> list[Bundle]:
    """Join bundles of at most MOST_ROWS rows while the joint ones have no more, alike ones first."""
    closed: list[Bundle] = []
    open_: list[Bundle] = []
    for bundle in sorted(bundles, key=lambda bundle: -bundle.rows):
        rows = [_rows_together(other, bundle) for other in open_]
        fitting = [place for place, count in enumerate(rows) if count <= MOST_ROWS]
        if fitting:
            best = min(fitting, key=lambda place: rows[place] / open_[place].rows)
            bundle = _join(open_.pop(best), bundle)
        (open_ if bundle.rows <= _OPEN_ROWS else closed).append(bundle)
        closed += open_[:-_OPEN]
        open_ = open_[-_OPEN:]
    return closed + open_


def _rows_together(one: Bundle, other: Bundle) -> int:
    """Count the rows that two bundles would have as one."""
    count = one.rows * other.rows
    for mine, theirs in _same_column(one, other):
        (values,), (more,) = mine.values.values(), theirs.values.values()
        base = len(theirs.masks)
        occurring = int(np.count_nonzero(np.bincount(values * base + more)))
        count = count // (len(mine.masks) * base) * occurring
    return count


def _join(one: Bundle, other: Bundle) -> Bundle:
    """Make one bundle of two: a column that both have a digit for gets one digit."""
    digits = []
    joined = _same_column(one, other)
    for mine, theirs in joined:
        ((column, values),), (more,) = mine.values.items(), theirs.values.values()
        base = len(theirs.masks)
        occurring, both = np.unique(values * base + more, return_inverse=True)
        masks = np.concatenate([mine.masks[occurring // base], theirs.masks[occurring % base]], axis=1)
        digits.append(Digit({column: both}, masks))
    done = [id(digit) for pair in joined for digit in pair]
    for bundle, before, after in ((one, 0, len(other.parts)), (other, len(one.parts), 0)):
        for digit in bundle.digits:
            if id(digit) not in done:
                padded = np.pad(digit.masks, ((0, 0), (before, after)), constant_values=2**32 - 1)
                digits.append(Digit(digit.values, padded))
    return Bundle(one.parts + other.parts, tuple(digits))


def _same_column(one: Bundle, other: Bundle) -> list[tuple[Digit, Digit]]:
    """Pair the digits of two bundles that one and the same column decides."""
    theirs = {next(iter(digit.values)): digit for digit in other.digits if len(digit.values) == 1}
    return [
        (digit, theirs[column])
        for digit in one.digits
        if len(digit.values) == 1
        for column in digit.values
        if column in theirs
    ]
