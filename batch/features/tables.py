"""The shape that features have between the stages that make them and those that use them.

A feature depends on the user alone, on the post alone, or on the user and a
*group* of posts (say, the posts of one topic). So the features of all users x
all posts fit in three small tables, and a row of the model's matrix is put
together only where it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from batch.arrays import Float32s, Int32s, Int64s

ROWS_BATCH = 100_000
"""Rows of the model's matrix that are put together at a time; it bounds the memory."""


class Kind(StrEnum):
    """What a feature depends on."""

    USER = "user"
    POST = "post"
    AFFINITY = "affinity"


@dataclass(frozen=True)
class Feature:
    """One column of the model's matrix.

    `categorical` columns hold whole numbers from 0 up, NaN for a missing value
    and for a category that training did not know.
    """

    name: str
    kind: Kind
    categorical: bool = False


@dataclass(frozen=True)
class Affinity:
    """Features of (user, group of posts) under one grouping of the posts.

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


@dataclass(frozen=True)
class FeatureTables:
    """Every feature of every user and every post as of one cutoff.

    The model's matrix has the user columns first, then the post columns, then
    the affinity columns grouping by grouping; `columns` is that order.

    Attributes
    ----------
    user_ids, post_ids
        (users,) and (posts,) int64, ascending; a row's place in the tables.
    user_features, user_values
        Columns, and (users, columns) float32.
    post_features, post_values
        Columns, and (posts, columns) float32.
    affinities
        One for each grouping, possibly none.
    """

    user_ids: Int64s
    user_features: tuple[Feature, ...]
    user_values: Float32s
    post_ids: Int64s
    post_features: tuple[Feature, ...]
    post_values: Float32s
    affinities: tuple[Affinity, ...] = ()

    @property
    def columns(self) -> tuple[Feature, ...]:
        """The model's columns, in the order of its matrix."""
        affine = tuple(feature for affinity in self.affinities for feature in affinity.features)
        return self.user_features + self.post_features + affine

    def of_users(self, places: npt.NDArray[np.intp]) -> FeatureTables:
        """Keep some users alone, in the order of their places given."""
        return replace(
            self,
            user_ids=self.user_ids[places],
            user_values=self.user_values[places],
            affinities=tuple(
                replace(affinity, values=affinity.values[places]) for affinity in self.affinities
            ),
        )

    def without(self, names: tuple[str, ...]) -> FeatureTables:
        """Leave out the features whose names start with one of these."""

        def kept(features: tuple[Feature, ...]) -> list[int]:
            return [place for place, feature in enumerate(features) if not feature.name.startswith(names)]

        def chosen(features: tuple[Feature, ...]) -> tuple[Feature, ...]:
            return tuple(features[place] for place in kept(features))

        return replace(
            self,
            user_features=chosen(self.user_features),
            user_values=np.ascontiguousarray(self.user_values[:, kept(self.user_features)]),
            post_features=chosen(self.post_features),
            post_values=np.ascontiguousarray(self.post_values[:, kept(self.post_features)]),
            affinities=tuple(
                replace(
                    affinity,
                    features=chosen(affinity.features),
                    values=np.ascontiguousarray(affinity.values[:, :, kept(affinity.features)]),
                )
                for affinity in self.affinities
            ),
        )

    def rows(self, users: npt.NDArray[np.intp], posts: npt.NDArray[np.intp]) -> Float32s:
        """Put together the matrix rows of some (user, post) pairs.

        Parameters
        ----------
        users, posts
            (pairs,) places in `user_ids` and in `post_ids`.

        Returns
        -------
        (pairs, columns) float32.
        """
        parts = [self.user_values[users], self.post_values[posts]]
        parts += [affinity.values[users, affinity.group_of_post[posts]] for affinity in self.affinities]
        return np.concatenate(parts, axis=1, dtype=np.float32)
