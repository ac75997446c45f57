"""Scores all users with all posts, chunk by chunk, and yields their lists.

batch/scoring/forest.py reads the trained forest, batch/scoring/parts.py and batch/scoring/bundles.py
sort its splits by what they depend on, batch/scoring/compile.py lays all that out for
the posts once a run, and batch/scoring/chunk.py scores a chunk of users with it. What
is left to say here is how many users make a chunk and where chunks run.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import nullcontext

import lightgbm as lgb
import numpy as np

from batch.arrays import Int64s
from batch.features.factors import Factors
from batch.features.tables import FeatureTables
from batch.loading.likes import Likes
from batch.scoring.chunk import Lists, UserRows, bytes_per_chunk, bytes_per_chunk_user, score_chunk
from batch.scoring.compile import PostSide, prepare
from contract.errors import ModelError

MIB = 2**20

# A bar moves, and a writer has work, at least so often.
MOST_USERS_PER_CHUNK = 16_384


def lists_of_all(
    booster: lgb.Booster,
    tables: FeatureTables,
    factors: Factors | None,
    liked: Likes,
    blocked: Int64s,
    n: int,
    *,
    users: int,
    budget_mib: int,
    threads: int,
    executor: Executor | None = None,
) -> Iterator[tuple[int, Lists]]:
    """Yield (how many users, their lists) chunk by chunk, the first `users` users in order.

    Parameters
    ----------
    booster
        Trained on `tables.columns`.
    tables
        The features.
    factors
        Their dot product is added to the forest's raw score; None for none.
    liked
        Posts left out of each user's list.
    blocked
        Rows of posts left out of all lists.
    n
        Longest list.
    users
        How many users to score.
    budget_mib
        Memory for the chunks under way, beside the features and the lists' reader.
    threads
        How many chunks are under way at a time; 0 for one on every core.
    executor
        Where chunks run; threads of this process if None.

    Raises
    ------
    ModelError
        Before anything is scored: the model cannot be scored exactly, or a factor is not finite.
    """
    if factors is not None:
        _check(factors)
    threads = threads or len(os.sched_getaffinity(0))
    side = prepare(booster, tables, None if factors is None else factors.posts, blocked)
    step = users_per_chunk(side, tables, n, users, budget_mib / threads)
    with ThreadPoolExecutor(threads) if executor is None else nullcontext(executor) as pool:
        waiting: deque[Future[Lists]] = deque()
        try:
            for start in range(0, users, step):
                rows = user_rows(tables, factors, liked, start, min(start + step, users))
                waiting.append(pool.submit(score_chunk, side, rows, n))
                if len(waiting) > threads:
                    yield _counted(waiting.popleft())
            while waiting:
                yield _counted(waiting.popleft())
        finally:
            for future in waiting:
                future.cancel()


def users_per_chunk(side: PostSide, tables: FeatureTables, n: int, users: int, budget_mib: float) -> int:
    """Say how many users fit a chunk's budget, one at least, in chunks of much the same size."""
    affine = sum(a.values.shape[1] * a.values.shape[2] for a in tables.affinities)
    most = int((budget_mib * MIB - bytes_per_chunk(side)) / bytes_per_chunk_user(side, affine, n))
    chunks = -(-users // min(max(1, most), MOST_USERS_PER_CHUNK))
    return max(1, -(-users // max(1, chunks)))


def user_rows(
    tables: FeatureTables, factors: Factors | None, liked: Likes, start: int, stop: int
) -> UserRows:
    """Take what a chunk needs to know of the users `start` to `stop - 1`."""
    return UserRows(
        user_ids=tables.user_ids[start:stop],
        values=tables.user_values[start:stop],
        affinities=tuple(affinity.values[start:stop] for affinity in tables.affinities),
        factors=np.zeros((stop - start, 0), np.float32) if factors is None else factors.users[start:stop],
        liked=liked.of_users(start, stop),
    )


def _check(factors: Factors) -> None:
    if factors.users.shape[1] != factors.posts.shape[1]:
        raise ModelError(
            f"users have {factors.users.shape[1]} factors and posts {factors.posts.shape[1]};"
            " a dot product needs as many of both"
        )
    if not (np.isfinite(factors.users).all() and np.isfinite(factors.posts).all()):
        raise ModelError("a collaborative factor is not a finite number; the model is unusable")


def _counted(future: Future[Lists]) -> tuple[int, Lists]:
    lists = future.result()
    return len(lists.user_ids), lists
