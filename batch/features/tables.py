"""Features of users, posts and affinities as tables, and the rows of a model's matrix.

A feature depends on the user only, on the post only, or on the user and a
*group* of posts, such as the posts of one topic. So the features of all users x
all posts fit in three small tables, and rows of the model's matrix are
assembled only where they are needed.

`ColumnEncoder` encodes the profile columns of users and posts as numbers, the
same in training and at night.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from batch.arrays import Float32s, Float64s, Int32s, Int64s, Rows

ROWS_BATCH = 100_000
"""Rows of the model's matrix assembled at a time; it bounds the memory."""


class Kind(StrEnum):
    """What a feature depends on."""

    USER = "user"
    POST = "post"
    AFFINITY = "affinity"


@dataclass(frozen=True)
class Feature:
    """One column of the model's matrix.

    A `categorical` column has integers from 0 up, and NaN for a missing value
    and for a category that was not in the training data.
    """

    name: str
    kind: Kind
    categorical: bool = False


@dataclass(frozen=True)
class FeatureColumns:
    """Features of users or of posts, and their (rows, features) float32 values; possibly none."""

    features: tuple[Feature, ...]
    values: Float32s

    @classmethod
    def empty(cls, rows: int) -> FeatureColumns:
        """Return no features of so many rows."""
        return cls((), np.empty((rows, 0), dtype=np.float32))

    @classmethod
    def from_columns(cls, kind: Kind, columns: Mapping[str, npt.ArrayLike]) -> FeatureColumns:
        """Make a numeric feature of each column: its name -> (rows,) values."""
        arrays = [np.asarray(column, np.float64) for column in columns.values()]
        return cls(tuple(Feature(name, kind) for name in columns), np.column_stack(arrays).astype(np.float32))

    @classmethod
    def numbered(cls, prefix: str, kind: Kind, values: Float32s) -> FeatureColumns:
        """Name the columns of a matrix `prefix_0`, `prefix_1` and so on."""
        return cls(tuple(Feature(f"{prefix}_{index}", kind) for index in range(values.shape[1])), values)

    def hstack(self, *others: FeatureColumns) -> FeatureColumns:
        """Append the columns of others."""
        blocks = (self, *others)
        features = tuple(feature for block in blocks for feature in block.features)
        return FeatureColumns(features, np.ascontiguousarray(np.hstack([block.values for block in blocks])))

    def without(self, prefixes: tuple[str, ...]) -> FeatureColumns:
        """Drop the features whose names start with one of these."""
        if not prefixes:
            return self
        kept = _indices_without(self.features, prefixes)
        return FeatureColumns(
            tuple(self.features[index] for index in kept), np.ascontiguousarray(self.values[:, kept])
        )


def _indices_without(features: tuple[Feature, ...], prefixes: tuple[str, ...]) -> list[int]:
    """Return the indices of the features whose names start with none of these."""
    return [index for index, feature in enumerate(features) if not feature.name.startswith(prefixes)]


@dataclass(frozen=True)
class Affinity:
    """Features of (user, group of posts) for one grouping of the posts.

    Attributes
    ----------
    grouping
        What the posts are grouped by, e.g. `topic`.
    features
        The columns, all of kind AFFINITY.
    group_of_post
        (posts,) int32 group of each post, 0 to groups - 1.
    values
        (users, groups, features) float32, NaN where unknown.
    """

    grouping: str
    features: tuple[Feature, ...]
    group_of_post: Int32s
    values: Float32s

    def without(self, prefixes: tuple[str, ...]) -> Affinity:
        """Drop the features whose names start with one of these."""
        if not prefixes:
            return self
        kept = _indices_without(self.features, prefixes)
        return replace(
            self,
            features=tuple(self.features[index] for index in kept),
            values=np.ascontiguousarray(self.values[:, :, kept]),
        )


@dataclass(frozen=True)
class FeatureTables:
    """Every feature of every user and every post as of one cutoff.

    The model's matrix has the user columns first, then the post columns, then
    the affinity columns of each grouping; `columns` is that order.

    Attributes
    ----------
    user_features, user_values
        Columns, and (users, columns) float32.
    post_features, post_values
        Columns, and (posts, columns) float32.
    post_likes
        (posts,) likes up to the cutoff: of two posts with equal scores, the one with more likes comes first.
    affinities
        One for each grouping, possibly none.
    """

    user_features: tuple[Feature, ...]
    user_values: Float32s
    post_features: tuple[Feature, ...]
    post_values: Float32s
    post_likes: Float64s
    affinities: tuple[Affinity, ...] = ()

    @property
    def users(self) -> int:
        """Number of users."""
        return len(self.user_values)

    @property
    def posts(self) -> int:
        """Number of posts."""
        return len(self.post_values)

    @property
    def columns(self) -> tuple[Feature, ...]:
        """The model's columns, in the order of its matrix."""
        of_affinities = tuple(feature for affinity in self.affinities for feature in affinity.features)
        return self.user_features + self.post_features + of_affinities

    def of_users(self, rows: Rows) -> FeatureTables:
        """Return the tables of some users, in the order of the rows."""
        return replace(
            self,
            user_values=self.user_values[rows],
            affinities=tuple(replace(affinity, values=affinity.values[rows]) for affinity in self.affinities),
        )

    def rows(self, users: npt.NDArray[np.intp], posts: npt.NDArray[np.intp]) -> Float32s:
        """Assemble the matrix rows of some (user, post) pairs.

        Parameters
        ----------
        users, posts
            (pairs,) rows of these tables.

        Returns
        -------
        (pairs, columns) float32.
        """
        blocks = [self.user_values[users], self.post_values[posts]]
        blocks += [affinity.values[users, affinity.group_of_post[posts]] for affinity in self.affinities]
        return np.concatenate(blocks, axis=1, dtype=np.float32)


class UserTables(Protocol):
    """Features from which those of some users can be had; `FeatureTables` are one."""

    @property
    def users(self) -> int:
        """Number of users."""

    def of_users(self, rows: Rows) -> FeatureTables:
        """Return the tables of some users, in the order of the rows."""


MIN_ROWS = 10
MAX_CATEGORIES = 200


@dataclass(frozen=True)
class ColumnEncoder:
    """Encodes the columns of one relation.

    Attributes
    ----------
    kind
        USER or POST.
    categories
        Column -> its categories, most frequent first; a category is encoded
        as its index. None for a numeric column.
    """

    kind: Kind
    categories: dict[str, tuple[str, ...] | None]

    @classmethod
    def fit(cls, kind: Kind, frame: pd.DataFrame, training_rows: Int64s) -> ColumnEncoder:
        """Find the categories in the rows that training examples refer to.

        A category with fewer than MIN_ROWS such rows is treated as missing, as
        is an unseen category.

        Parameters
        ----------
        training_rows
            Distinct rows of the frame.
        """
        seen = frame.iloc[training_rows]
        return cls(
            kind,
            {
                str(column): None if frame[column].dtype == np.float64 else _find_frequent(seen[column])
                for column in frame.columns
            },
        )

    def encode(self, frame: pd.DataFrame) -> FeatureColumns:
        """Encode the columns; missing, infinite and unknown values become NaN."""
        values = np.full((len(frame), len(self.categories)), np.nan, dtype=np.float32)
        features = []
        for index, (column, categories) in enumerate(self.categories.items()):
            features.append(Feature(f"{self.kind}_{column}", self.kind, categorical=categories is not None))
            if categories is None:
                numbers = frame[column].to_numpy(np.float64)
                values[:, index] = np.where(np.abs(numbers) < np.finfo(np.float32).max, numbers, np.nan)
            else:
                codes = {category: code for code, category in enumerate(categories)}
                values[:, index] = _as_text(frame[column]).map(codes).to_numpy(np.float32)
        return FeatureColumns(tuple(features), values)


def _find_frequent(column: pd.Series) -> tuple[str, ...]:
    counts = _as_text(column).value_counts()
    counts = counts[counts >= MIN_ROWS]
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(str(category) for category, _ in ranked[:MAX_CATEGORIES])


def _as_text(column: pd.Series) -> pd.Series:
    """Convert values to text; null and empty text become null."""
    return column.map(
        lambda value: str(value) if value not in (None, "") else None, na_action="ignore"
    ).astype(object)
