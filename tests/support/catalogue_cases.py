"""Hand-written cases of the full catalogue protocol, and a slow reference of a metric."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from batch.arrays import Int32s
from batch.evaluation.catalogue_case import CatalogueCase
from batch.evaluation.ranking_metrics import DEPTH
from batch.loading.likes import Likes


def make_case() -> CatalogueCase:
    """Two users and six posts: user 0 liked post 5 before and will like 0 and 3; user 1 will like 4."""
    likes = Likes(np.array([0, 1, 1]), np.array([5], dtype=np.int32))
    popularity = np.array([0.0, 1, 2, 3, 4, 8])
    return CatalogueCase(
        users=np.array([0, 1]),
        user_ids=np.array([70, 71]),
        likes=likes,
        left_out=likes,
        hidden=np.array([2]),
        liked_later=np.array([0, 3, 10]),
        popularity=popularity,
    )


def pad_lists(*heads: list[int]) -> Int32s:
    """Pad lists of posts to (lists, DEPTH)."""
    return np.array([[*head, *[-1] * (DEPTH - len(head))] for head in heads], dtype=np.int32)


def compute_overlap(lists: Int32s, depth: int) -> float:
    """Return the mean over ordered pairs of lists of the share of the first list that the second shares."""
    heads = [set(row[:depth][row[:depth] >= 0].tolist()) for row in lists]
    shares = [len(one & other) / len(one) for one, other in permutations(heads, 2) if one]
    return float(np.mean(shares))
