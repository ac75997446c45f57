"""Cohorts: users with the same value of an attribute (age, country, ...), and what they like.

Features for users with few or no interactions. As in naive Bayes, the log-odds
that a user likes a group of posts are summed over the user's attributes:

    sum over attributes of log(group's share of the cohort's likes / its share of all likes)

Posts are grouped too, by topic and by text cluster (`Groupings`), for features
of a user and a group of posts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from batch.arrays import Float32s, Float64s, Int32s, Int64s
from batch.loading.likes import Likes
from contract import columns

MAX_VALUES = 12
"""The most frequent values of an attribute have a code each; other and missing values share one more."""

BANDS = 8
"""A numeric attribute with more than MAX_VALUES values is cut into this many quantile bands."""

PRIOR_LIKES = 200.0
"""Pseudo-count: each cohort starts with this many likes, distributed as all users' likes are."""


@dataclass(frozen=True)
class Cohorts:
    """Codes for the values of users' attributes.

    Attributes
    ----------
    edges
        Attribute -> inner edges of its bands, for numeric attributes with many values.
    words
        Attribute -> values with a code of their own, for all other attributes.
    sizes
        Attribute -> number of codes, in the order of the columns.
    """

    edges: dict[str, list[float]]
    words: dict[str, list[str]]
    sizes: dict[str, int]

    @classmethod
    def fit(cls, users: pd.DataFrame) -> Cohorts:
        """Choose bands and values from the users of a network.

        Parameters
        ----------
        users
            Row per user, column per attribute: float64 or object.
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
        """Return the code of each user's value of each attribute.

        Returns
        -------
        (users, attributes) codes from 0 to `count` - 1; no two attributes share a code.
        """
        codes, offset = [], 0
        for name, size in self.sizes.items():
            codes.append(offset + np.minimum(self._codes(name, users[name]), size - 1))
            offset += size
        return np.stack(codes, axis=1) if codes else np.zeros((len(users), 0), dtype=np.int64)

    @property
    def count(self) -> int:
        """Number of codes of all attributes, at least 1."""
        return max(sum(self.sizes.values()), 1)

    def _codes(self, name: str, column: pd.Series) -> Int64s:
        """Return the codes of one attribute, from 0; the last is for other and missing values."""
        if name in self.edges:
            edges = self.edges[name]
            codes = np.searchsorted(edges, column.to_numpy(np.float64), side="right")
            return np.where(column.notna(), codes, len(edges) + 1).astype(np.int64)
        code_of = {value: code for code, value in enumerate(self.words[name])}
        return column.map(lambda value: code_of.get(str(value), len(code_of))).to_numpy(np.int64)


def one_hot(values: Int64s, count: int) -> csr_matrix:
    """Return (users, count) 1 where a user has a code, from `Cohorts.encode`."""
    users, attributes = values.shape
    starts = np.arange(users + 1) * attributes
    ones = np.ones(values.size, dtype=np.float32)
    return csr_matrix((ones, values.ravel(), starts), shape=(users, count))


def count_cohort_likes(values: csr_matrix, likes: Likes, group_of_post: Int32s, groups: int) -> Float64s:
    """Count the likes of each cohort in each group of posts.

    Parameters
    ----------
    values
        (users, codes) from `one_hot`.
    likes
        Of these users, up to the cutoff.
    group_of_post, groups
        (posts,) group of each post, and the number of groups.

    Returns
    -------
    (codes, groups) counts, which can be added up over users.
    """
    liked = csr_matrix(
        (np.ones(likes.posts.size), group_of_post[likes.posts], likes.starts), shape=(values.shape[0], groups)
    )
    counts: Float64s = np.asarray((values.T @ liked).todense(), dtype=np.float64)
    return counts


def cohort_lift(of_cohort: Float64s, of_all: Float64s) -> Float32s:
    """Return the log-odds that users of a cohort like each group of posts, relative to all users.

    Parameters
    ----------
    of_cohort
        (codes, groups) likes of all users, from `count_cohort_likes`.
    of_all
        (groups,) likes of all users.

    Returns
    -------
    (codes, groups) float32 log-odds, shrunk towards 0.
    """
    share_of_all = (of_all + 1) / (of_all + 1).sum()
    share = (of_cohort + PRIOR_LIKES * share_of_all) / (of_cohort.sum(axis=1, keepdims=True) + PRIOR_LIKES)
    lift: Float32s = np.log(share / share_of_all).astype(np.float32)
    return lift


def cohort_log_odds(values: Int64s, lift: Float32s) -> Float32s:
    """Return (users, groups) float32: the sum of the lifts of each user's cohorts.

    Parameters
    ----------
    values
        (users, attributes) from `Cohorts.encode`.
    lift
        (codes, groups) from `cohort_lift`.
    """
    total = np.zeros((len(values), lift.shape[1]), dtype=np.float32)
    for attribute in range(values.shape[1]):
        total += lift[values[:, attribute]]
    return total


MAX_TOPICS = 50

CLUSTER = "cluster"
"""Name of the grouping by text clusters, see batch/features/text.py."""


@dataclass(frozen=True)
class Groupings:
    """The group of every post under each grouping.

    Attributes
    ----------
    names
        Names of the groupings.
    groups
        (posts, groupings) int32, each column 0 to its size - 1.
    sizes
        Number of groups of each grouping.
    """

    names: tuple[str, ...]
    groups: Int32s
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, **groupings: tuple[Int32s, int]) -> Groupings:
        """Build from name=((posts,) group of each post, number of groups)."""
        groups = np.stack([group for group, _ in groupings.values()], axis=1).astype(np.int32)
        return cls(tuple(groupings), groups, tuple(size for _, size in groupings.values()))

    def of_post(self, name: str) -> Int32s:
        """Return (posts,) group of each post under one grouping."""
        return np.ascontiguousarray(self.groups[:, self.names.index(name)])


def by_topic(posts: pd.DataFrame) -> tuple[Int32s, int]:
    """Return the topic group of each post, and the number of groups.

    The MAX_TOPICS most frequent topics, in alphabetical order, have a group
    each; all other posts are in the last group. The limit bounds the memory per user.
    """
    topics = frequent_topics(posts)
    groups = posts[columns.TOPIC].map({topic: group for group, topic in enumerate(topics)})
    return groups.fillna(len(topics)).to_numpy().astype(np.int32), len(topics) + 1


def frequent_topics(posts: pd.DataFrame) -> tuple[str, ...]:
    """Return the topics with the most posts, in alphabetical order."""
    counts = posts[columns.TOPIC].value_counts()
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(sorted(str(topic) for topic, _ in ranked[:MAX_TOPICS]))
