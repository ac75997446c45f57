"""Users by attribute, and what users with the same attributes like.

This serves users of whom little or nothing is known but who they are.

Each attribute of a user (age, country, ...) puts them among people with the
same value. If such people like a group of posts more often than everybody does,
so, probably, does the user: as naive Bayes has it, the log-odds of a group are
the sum, over the attributes, of log(share among them / share among all).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from batch.arrays import Float32s, Int32s, Int64s
from batch.loading.likes import Likes

MAX_VALUES = 12
"""Most values told apart of one attribute; the rest, and a missing value, are one more."""

BANDS = 8
"""Of a numeric attribute with more values than can be told apart: bands with equally many users."""

PRIOR_LIKES = 200.0
"""How many likes spread as everybody's are each share starts from."""


@dataclass(frozen=True)
class Cohorts:
    """How the values of users' attributes are numbered: equal values of one attribute have one number.

    Attributes
    ----------
    edges
        Attribute -> edges of the bands of a number with many values.
    words
        Attribute -> values told apart, of any other.
    sizes
        Attribute -> how many numbers it has, in the order of the columns.
    """

    edges: dict[str, list[float]]
    words: dict[str, list[str]]
    sizes: dict[str, int]

    @classmethod
    def fit(cls, users: pd.DataFrame) -> Cohorts:
        """Choose bands and values by the users of a network.

        Parameters
        ----------
        users
            Row per user, column per attribute: float64 or words.
        """
        edges, words, sizes = {}, {}, {}
        for name, column in users.items():
            known = column[column.notna()]
            if column.dtype == np.float64 and known.nunique() > MAX_VALUES:
                edges[str(name)] = np.unique(np.quantile(known, np.linspace(0, 1, BANDS + 1)[1:-1])).tolist()
            else:
                counts = known.map(str).value_counts()
                ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_VALUES]
                words[str(name)] = [str(value) for value, _ in ranked]
            codes = cls(edges, words, {})._codes(str(name), column)
            sizes[str(name)] = int(codes.max(initial=0)) + 1
        return cls(edges, words, sizes)

    def encode(self, users: pd.DataFrame) -> Int64s:
        """Number each user's value of each attribute.

        Returns
        -------
        (users, attributes) from 0 up; a number belongs to one value of one attribute.
        """
        numbered, before = [], 0
        for name, size in self.sizes.items():
            numbered.append(before + np.minimum(self._codes(name, users[name]), size - 1))
            before += size
        return np.stack(numbered, axis=1) if numbered else np.zeros((len(users), 0), dtype=np.int64)

    @property
    def count(self) -> int:
        """How many numbers there are, at least 1."""
        return max(sum(self.sizes.values()), 1)

    def _codes(self, name: str, column: pd.Series) -> Int64s:
        """Number a column's values from 0 up; a missing value, and what is not told apart, comes last."""
        if name in self.edges:
            edges = self.edges[name]
            codes = np.searchsorted(edges, column.to_numpy(np.float64), side="right")
            return np.where(column.notna(), codes, len(edges) + 1).astype(np.int64)
        numbers = {value: number for number, value in enumerate(self.words[name])}
        return column.map(lambda value: numbers.get(str(value), len(numbers))).to_numpy(np.int64)


def one_hot(values: Int64s, count: int) -> csr_matrix:
    """Return (users, count), 1 where a user has the value, from `Cohorts.encode`."""
    users, attributes = values.shape
    starts = np.arange(users + 1) * attributes
    ones = np.ones(values.size, dtype=np.float32)
    return csr_matrix((ones, values.ravel(), starts), shape=(users, count))


def cohort_lift(values: csr_matrix, likes: Likes, group_of_post: Int32s, groups: int) -> Float32s:
    """Compute how much more, or less, users with a value like each group of posts than all users do.

    Parameters
    ----------
    values
        (users, values) from `one_hot`.
    likes
        Up to the cutoff.
    group_of_post, groups
        (posts,) group of each post; how many there are.

    Returns
    -------
    (values, groups) float32 log-odds, shrunk towards 0.
    """
    liked = csr_matrix(
        (np.ones(likes.posts.size), group_of_post[likes.posts], likes.starts), shape=(values.shape[0], groups)
    )
    of_value = np.asarray((values.T @ liked).todense(), dtype=np.float64)
    of_all = np.asarray(liked.sum(axis=0), dtype=np.float64).ravel() + 1
    share_of_all = of_all / of_all.sum()
    share = (of_value + PRIOR_LIKES * share_of_all) / (of_value.sum(axis=1, keepdims=True) + PRIOR_LIKES)
    lift: Float32s = np.log(share / share_of_all).astype(np.float32)
    return lift


def cohort_log_odds(values: Int64s, lift: Float32s) -> Float32s:
    """Sum the lift of each user's values: (users, groups) float32.

    Parameters
    ----------
    values
        (users, attributes) from `Cohorts.encode`.
    lift
        (values, groups) from `cohort_lift`.
    """
    total = np.zeros((len(values), lift.shape[1]), dtype=np.float32)
    for attribute in range(values.shape[1]):
        total += lift[values[:, attribute]]
    return total
