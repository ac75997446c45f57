"""What people like the user like: for users of whom little or nothing is known but who they are.

Each attribute of a user (age, country, ...) puts them among people with the
same value. If such people like a group of posts more often than everybody does,
so, probably, does the user: as naive Bayes has it, the log-odds of a group are
the sum, over the attributes, of log(share among them / share among all).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_matrix

from batch.arrays import Float32s, Int32s, Int64s
from batch.loading.likes import Likes

MOST_VALUES = 12
"""Most values told apart of one attribute; the rest, and a missing value, are one more."""

BANDS = 8
"""Of a numeric attribute with more values than can be told apart: bands with equally many users."""

PRIOR_LIKES = 200.0
"""How many likes spread as everybody's are each share starts from."""


def attribute_values(users: pd.DataFrame) -> Int64s:
    """Number each user's value of each attribute.

    Parameters
    ----------
    users
        Row per user, column per attribute: float64 or words.

    Returns
    -------
    (users, attributes) from 0 up; a number belongs to one value of one attribute.
    """
    numbered, before = [], 0
    for name in users.columns:
        codes = _codes(users[name])
        numbered.append(before + codes)
        before += int(codes.max(initial=0)) + 1
    return np.stack(numbered, axis=1) if numbered else np.zeros((len(users), 0), dtype=np.int64)


def one_hot(values: Int64s) -> csr_matrix:
    """Return (users, values of all attributes), 1 where a user has the value."""
    users, attributes = values.shape
    starts = np.arange(users + 1) * attributes
    ones = np.ones(values.size, dtype=np.float32)
    return csr_matrix((ones, values.ravel(), starts), shape=(users, int(values.max(initial=0)) + 1))


def people_log_odds(values: Int64s, likes: Likes, group_of_post: Int32s, groups: int) -> Float32s:
    """Tell how much more, or less, people like the user like each group of posts than everybody does.

    Parameters
    ----------
    values
        From `attribute_values`.
    likes
        Up to the cutoff.
    group_of_post, groups
        (posts,) group of each post; how many there are.

    Returns
    -------
    (users, groups) float32 log-odds, shrunk towards 0.
    """
    users = len(values)
    liked = csr_matrix(
        (np.ones(likes.posts.size), group_of_post[likes.posts], likes.starts), shape=(users, groups)
    )
    of_value = np.asarray((one_hot(values).T @ liked).todense(), dtype=np.float64)
    of_all = np.asarray(liked.sum(axis=0), dtype=np.float64).ravel() + 1
    share_of_all = of_all / of_all.sum()
    share = (of_value + PRIOR_LIKES * share_of_all) / (of_value.sum(axis=1, keepdims=True) + PRIOR_LIKES)
    lift = np.log(share / share_of_all).astype(np.float32)
    total = np.zeros((users, groups), dtype=np.float32)
    for attribute in range(values.shape[1]):
        total += lift[values[:, attribute]]
    return total


def _codes(column: pd.Series) -> npt.NDArray[np.int64]:
    """Number a column's values: the most frequent ones, or bands of a number with many; the rest last."""
    known = column[column.notna()]
    if column.dtype == np.float64 and known.nunique() > MOST_VALUES:
        edges = np.unique(np.quantile(known, np.linspace(0, 1, BANDS + 1)[1:-1]))
        codes = np.searchsorted(edges, column.to_numpy(np.float64), side="right")
        return np.where(column.notna(), codes, len(edges) + 1).astype(np.int64)
    counts = known.map(str).value_counts()
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_VALUES]
    numbers = {value: number for number, (value, _) in enumerate(ranked)}
    return column.map(lambda value: numbers.get(str(value), len(numbers))).to_numpy(np.int64)
