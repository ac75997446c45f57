"""Scores all users against all posts, a chunk of users at a time.

The plain way: put together the matrix rows of every pair of the chunk and let
LightGBM predict them. How many users make a chunk follows from a memory
budget, so that memory does not grow with the number of users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import lightgbm as lgb
import numpy as np
import numpy.typing as npt

from batch.factors import Factors
from batch.likes import Likes
from batch.tables import FeatureTables, Float32s, Int32s, Int64s
from batch.top_n import top_n
from contract.errors import ModelError

MIB = 2**20
BYTES_PER_PAIR_AND_COLUMN = 8
BYTES_PER_PAIR = 48
"""Rows and the parts they are made of; places, scores in both precisions, masks."""


@dataclass(frozen=True)
class Lists:
    """Lists of one chunk of users.

    Attributes
    ----------
    user_ids
        (users,) int64.
    posts
        (users, n) int32 places of posts, best first; -1 pads a short list.
    scores
        (users, n) float32.
    """

    user_ids: Int64s
    posts: Int32s
    scores: Float32s


def users_per_chunk(budget_mib: int, tables: FeatureTables) -> int:
    """Return how many users fit the budget with all their pairs, one at least."""
    bytes_per_pair = BYTES_PER_PAIR_AND_COLUMN * len(tables.columns) + BYTES_PER_PAIR
    return max(1, budget_mib * MIB // (bytes_per_pair * tables.post_ids.size))


def score_chunk(
    booster: lgb.Booster, tables: FeatureTables, factors: Factors | None, start: int, stop: int, threads: int
) -> Float32s:
    """Score users `start` to `stop - 1` against every post: (users, posts) float32 raw scores."""
    posts = tables.post_ids.size
    users = np.repeat(np.arange(start, stop), posts)
    rows = tables.rows(users, np.tile(np.arange(posts), stop - start))
    forest = booster.predict(rows, raw_score=True, num_threads=threads)
    scores = np.asarray(forest, dtype=np.float32).reshape(stop - start, posts)
    if factors is not None:
        scores += factors.users[start:stop] @ factors.posts.T
    return scores


def lists_of_all(
    booster: lgb.Booster,
    tables: FeatureTables,
    factors: Factors | None,
    liked: Likes,
    blocked: npt.NDArray[np.int64],
    n: int,
    *,
    users: int,
    budget_mib: int,
    threads: int,
) -> Iterator[tuple[int, Lists]]:
    """Yield (how many users, their lists) chunk by chunk, the first `users` users in order.

    Raises
    ------
    ModelError
        A score is not finite; nothing that holds one may be published.
    """
    step = users_per_chunk(budget_mib, tables)
    for start in range(0, users, step):
        stop = min(start + step, users)
        scores = score_chunk(booster, tables, factors, start, stop, threads)
        if not np.isfinite(scores).all():
            raise ModelError(
                f"scores of users {start} to {stop - 1} are not all finite; the model is unusable"
            )
        best, best_scores = top_n(scores, liked.of_users(start, stop), blocked, n)
        yield stop - start, Lists(tables.user_ids[start:stop], best, best_scores)
