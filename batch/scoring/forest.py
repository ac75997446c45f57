"""A trained LightGBM model as plain trees.

LightGBM writes a model as text: some `key=value` lines, then one block of such
lines for each tree. Thresholds and leaf values have 17 digits, so they parse to
the same float64. A raw score is the sum, over the trees, of the value of the
leaf that a row falls into. `Tree.goes_left` is the only place in the project
that implements LightGBM's treatment of missing values and categories.
"""

from __future__ import annotations

from dataclasses import dataclass

import lightgbm
import numpy as np

from batch.arrays import Bools, Float64s, Int64s
from contract.errors import ModelError

Booster = lightgbm.Booster

# LightGBM treats values this close to zero as zero, in splits and when it reads a dense row.
ZERO = float(np.float32(1e-35))
AROUND_ZERO = np.array([np.nextafter(-ZERO, -1), ZERO])

_CATEGORICAL, _DEFAULT_LEFT, _MISSING_ZERO, _MISSING_NAN = 1, 2, 1 << 2, 2 << 2


@dataclass(frozen=True)
class Tree:
    """One tree; leaves are numbered as in LightGBM, splits in order of creation.

    Attributes
    ----------
    columns, thresholds
        (splits,) column that a split tests; greatest value that goes left.
    decisions
        (splits,) LightGBM's bits: categorical, default left, missing type.
    left, right
        (splits,) child: the index of a split, or `~leaf`.
    categories
        The categories that go left at a categorical split; empty at others.
    values
        (leaves,) float64 raw scores; a constant tree has one leaf and no split.
    """

    columns: Int64s
    thresholds: Float64s
    decisions: Int64s
    left: Int64s
    right: Int64s
    categories: tuple[Int64s, ...]
    values: Float64s

    def goes_left(self, split: int, values: Float64s) -> Bools:
        """Return whether each value of the split's column goes to the left child.

        Parameters
        ----------
        split
            Index of the split.
        values
            Values of the column, of any shape; NaN and infinities are allowed.
        """
        bits = self.decisions[split]
        missing = np.isnan(values)
        if bits & _CATEGORICAL:
            # LightGBM truncates to an int; NaN and values outside its range are in no set.
            known = ~missing & (values > -1) & (values < 2**31)
            return known & np.isin(np.trunc(np.where(known, values, -1)), self.categories[split])
        if not bits & _MISSING_NAN:
            values = np.where(missing, 0.0, values)
            missing = (np.abs(values) <= ZERO) & bool(bits & _MISSING_ZERO)
        return np.where(missing, bool(bits & _DEFAULT_LEFT), values <= self.thresholds[split])

    def split_points(self, split: int) -> Float64s:
        """Return the ends of the intervals whose values all go the same way at a split.

        An end is the greatest value of its interval.
        """
        if not self.decisions[split] & _CATEGORICAL:
            return np.append(self.thresholds[split], AROUND_ZERO)
        members = self.categories[split].astype(np.float64)
        # All values in (-1, 1) are truncated to category 0.
        ends = np.concatenate(
            [np.where(members == 0, -1.0, np.nextafter(members, -1)), np.nextafter(members + 1, 0)]
        )
        return np.unique(ends)


@dataclass(frozen=True)
class Forest:
    """All the trees that `Booster.predict` uses, and the number of columns they read."""

    trees: tuple[Tree, ...]
    columns: int


def read_forest(booster: Booster) -> Forest:
    """Read the trees of a Booster, up to its best iteration if training stopped early.

    A model with `boosting=rf` averages its trees only for probabilities. Its
    raw score is their sum, like that of any other forest.

    Raises
    ------
    ModelError
        The raw score is not the plain sum of one leaf value per tree.
    """
    trees, _, _ = booster.model_to_string().partition("\nend of trees")
    head, *blocks = trees.split("\nTree=")
    header = _parse_fields(head)
    if header["num_tree_per_iteration"] != "1":
        raise ModelError(
            f"the model has {header['num_tree_per_iteration']} trees per iteration, one for each class;"
            " train it with an objective that has one score, such as binary"
        )
    forest = tuple(_parse_tree(_parse_fields(block)) for block in blocks)
    return Forest(forest, int(header["max_feature_idx"]) + 1)


def _parse_fields(block: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in block.splitlines() if "=" in line)


def _parse_tree(fields: dict[str, str]) -> Tree:
    if fields.get("is_linear", "0") != "0":
        raise ModelError(
            "the model has linear trees, whose leaves are not constant; train it with linear_tree=false"
        )
    decisions = _parse_integers(fields["decision_type"])
    thresholds = np.array(fields["threshold"].split(), dtype=np.float64)
    category_sets = _parse_category_sets(fields)
    empty = np.empty(0, dtype=np.int64)
    values = np.array(fields["leaf_value"].split(), dtype=np.float64)
    if not np.isfinite(values).all():
        raise ModelError("a leaf value of the model is NaN or infinite; train the model again")
    return Tree(
        columns=_parse_integers(fields["split_feature"]),
        thresholds=thresholds,
        decisions=decisions,
        left=_parse_integers(fields["left_child"]),
        right=_parse_integers(fields["right_child"]),
        # The threshold of a categorical split is the index of its set.
        categories=tuple(
            category_sets[int(threshold)] if bits & _CATEGORICAL else empty
            for threshold, bits in zip(thresholds, decisions, strict=True)
        ),
        values=values,
    )


def _parse_category_sets(fields: dict[str, str]) -> list[Int64s]:
    """Unpack the tree's sets of categories: bit sets in 32-bit words."""
    if fields["num_cat"] == "0":
        return []
    bounds = _parse_integers(fields["cat_boundaries"])
    words = np.array(fields["cat_threshold"].split(), dtype=np.uint32)
    bits = [np.unpackbits(set_.view(np.uint8), bitorder="little") for set_ in np.split(words, bounds[1:-1])]
    return [np.flatnonzero(row) for row in bits]


def _parse_integers(text: str) -> Int64s:
    return np.array(text.split(), dtype=np.int64)
