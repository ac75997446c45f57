"""A trained LightGBM model, read into plain trees.

LightGBM writes a model as text: a few `key=value` lines, then one block of
them for each tree, every threshold and leaf value with the 17 digits that give
the same float64 back. A raw score is the sum, over the trees, of the value of
the leaf that a row falls into; `Tree.goes_left` is the rule that sends it
there, and the only place in the project that knows LightGBM's treatment of
missing values and categories.
"""

from __future__ import annotations

from dataclasses import dataclass

import lightgbm
import numpy as np

from batch.arrays import Bools, Float64s, Int64s
from contract.errors import ModelError

# Values this close to zero are zero to LightGBM, in splits and when it reads a dense row.
ZERO = float(np.float32(1e-35))
AROUND_ZERO = np.array([np.nextafter(-ZERO, -1), ZERO])

_CATEGORICAL, _DEFAULT_LEFT, _MISSING_ZERO, _MISSING_NAN = 1, 2, 1 << 2, 2 << 2


@dataclass(frozen=True)
class Tree:
    """One tree; leaves are numbered as LightGBM does, splits in order of creation.

    Attributes
    ----------
    columns, thresholds
        (splits,) column that a split tests; greatest value that goes left.
    decisions
        (splits,) LightGBM's bits: categorical, default left, missing type.
    left, right
        (splits,) child: a split from 0 up, or `~leaf`.
    categories
        The categories that go left at a categorical split; empty at others.
    values
        (leaves,) float64 raw scores; one leaf and no split for a constant tree.
    """

    columns: Int64s
    thresholds: Float64s
    decisions: Int64s
    left: Int64s
    right: Int64s
    categories: tuple[Int64s, ...]
    values: Float64s

    def goes_left(self, split: int, values: Float64s) -> Bools:
        """Tell which values of the split's column go to its left child.

        Parameters
        ----------
        split
            Which split.
        values
            Any values of the column, NaN and infinities too.
        """
        bits = self.decisions[split]
        missing = np.isnan(values)
        if bits & _CATEGORICAL:
            # Truncated to a whole number; what does not fit an int is in no set, nor is NaN.
            known = ~missing & (values > -1) & (values < 2**31)
            return known & np.isin(np.trunc(np.where(known, values, -1)), self.categories[split])
        if not bits & _MISSING_NAN:
            values = np.where(missing, 0.0, values)
            missing = (np.abs(values) <= ZERO) & bool(bits & _MISSING_ZERO)
        return np.where(missing, bool(bits & _DEFAULT_LEFT), values <= self.thresholds[split])

    def changes(self, split: int) -> Float64s:
        """Give the points between which all of the column's values go the same way at a split.

        A point is the greatest value of the stretch that it ends.
        """
        if not self.decisions[split] & _CATEGORICAL:
            return np.append(self.thresholds[split], AROUND_ZERO)
        members = self.categories[split].astype(np.float64)
        # All of (-1, 1) is truncated to category 0.
        ends = np.concatenate(
            [np.where(members == 0, -1.0, np.nextafter(members, -1)), np.nextafter(members + 1, 0)]
        )
        return np.unique(ends)


@dataclass(frozen=True)
class Forest:
    """All the trees that `Booster.predict` would use, and the number of columns they read."""

    trees: tuple[Tree, ...]
    columns: int


def read_forest(booster: lightgbm.Booster) -> Forest:
    """Read a Booster's trees, up to its best iteration if it stopped early.

    Boosting by `rf` averages its trees only when asked for probabilities: the
    raw score is their sum, like any other forest's.

    Raises
    ------
    ModelError
        If its raw score is not the plain sum of one leaf value a tree.
    """
    trees, _, _ = booster.model_to_string().partition("\nend of trees")
    head, *blocks = trees.split("\nTree=")
    header = _fields(head)
    if header["num_tree_per_iteration"] != "1":
        raise ModelError(
            f"the model grows {header['num_tree_per_iteration']} trees an iteration, one for each class;"
            " train it with an objective that has one score, such as binary"
        )
    return Forest(tuple(_tree(_fields(block)) for block in blocks), int(header["max_feature_idx"]) + 1)


def _fields(block: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in block.splitlines() if "=" in line)


def _tree(fields: dict[str, str]) -> Tree:
    if fields.get("is_linear", "0") != "0":
        raise ModelError(
            "the model has linear trees, whose leaves are not constant; train it with linear_tree=false"
        )
    decisions = _whole(fields["decision_type"])
    thresholds = np.array(fields["threshold"].split(), dtype=np.float64)
    sets = _category_sets(fields)
    none = np.empty(0, dtype=np.int64)
    values = np.array(fields["leaf_value"].split(), dtype=np.float64)
    if not np.isfinite(values).all():
        raise ModelError("a leaf of the model has a value that is not finite; train it anew")
    return Tree(
        columns=_whole(fields["split_feature"]),
        thresholds=thresholds,
        decisions=decisions,
        left=_whole(fields["left_child"]),
        right=_whole(fields["right_child"]),
        # At a categorical split the threshold is the number of its set.
        categories=tuple(
            sets[int(threshold)] if bits & _CATEGORICAL else none
            for threshold, bits in zip(thresholds, decisions, strict=True)
        ),
        values=values,
    )


def _category_sets(fields: dict[str, str]) -> list[Int64s]:
    """Unpack the tree's sets of categories: a bit for each category, in 32-bit words."""
    if fields["num_cat"] == "0":
        return []
    bounds = _whole(fields["cat_boundaries"])
    words = np.array(fields["cat_threshold"].split(), dtype=np.uint32)
    bits = [np.unpackbits(set_.view(np.uint8), bitorder="little") for set_ in np.split(words, bounds[1:-1])]
    return [np.flatnonzero(row) for row in bits]


def _whole(text: str) -> Int64s:
    return np.array(text.split(), dtype=np.int64)
