"""Models compiled for the posts of a network, and the lists of its users, chunk by chunk."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from batch.arrays import Int64s
from batch.features.factors import Factors
from batch.features.tables import FeatureTables
from batch.loading.left_out import LeftOut
from batch.scoring.chunk import Lists, UserRows, bytes_per_chunk, bytes_per_chunk_user, score_chunk
from batch.scoring.compile import CompiledForest, compile_forest
from batch.scoring.forest import Booster
from contract.errors import ModelError

MIB = 2**20

MAX_USERS_PER_CHUNK = 16_384
"""Bounds the time between two updates of the progress bar, and between two chunks for the writer."""


@dataclass(frozen=True)
class CompiledModel:
    """A model compiled for some posts, with all that its users' scores depend on.

    Attributes
    ----------
    forest
        Compiled for the posts of `tables` that are not blocked.
    tables
        The features of users and posts.
    factors
        Their dot product is added to the forest's raw score; None for none.
    left_out
        Posts to exclude from each user's list.
    """

    forest: CompiledForest
    tables: FeatureTables
    factors: Factors | None
    left_out: LeftOut

    def of_users(self, rows: npt.NDArray[np.intp]) -> CompiledModel:
        """Return the model for some of the users, in the order of the rows."""
        return replace(
            self,
            tables=self.tables.of_users(rows),
            factors=None if self.factors is None else self.factors.of_users(rows),
            left_out=self.left_out.of_rows(rows),
        )

    def score(
        self,
        n: int,
        *,
        users: int | None = None,
        budget_mib: int,
        threads: int,
        executor: Executor | None = None,
    ) -> Iterator[tuple[int, Lists]]:
        """Score users with all posts; yield (number of users, their lists) chunk by chunk, users in order.

        Parameters
        ----------
        n
            Longest list.
        users
            Number of users to score, from the first; None for all.
        budget_mib
            Memory of the chunks in progress, in addition to the features and to whatever reads the lists.
        threads
            Chunks in progress at a time; 0 for the number of cores.
        executor
            Where chunks run; threads of this process if None.
        """
        if users is None:
            users = self.tables.users
        threads = threads or len(os.sched_getaffinity(0))
        size = self.users_per_chunk(n, users, budget_mib / threads)
        with ThreadPoolExecutor(threads) if executor is None else nullcontext(executor) as pool:
            waiting: deque[Future[Lists]] = deque()
            try:
                for start in range(0, users, size):
                    rows = self.user_rows(start, min(start + size, users))
                    waiting.append(pool.submit(score_chunk, self.forest, rows, n))
                    if len(waiting) > threads:
                        yield _with_length(waiting.popleft())
                while waiting:
                    yield _with_length(waiting.popleft())
            finally:
                for future in waiting:
                    future.cancel()

    def users_per_chunk(self, n: int, users: int, budget_mib: float) -> int:
        """Return how many users fit a chunk's budget, at least one, so that chunks are of similar size."""
        affinity_values = sum(a.values.shape[1] * a.values.shape[2] for a in self.tables.affinities)
        per_user = bytes_per_chunk_user(self.forest, affinity_values, n)
        fitting = int((budget_mib * MIB - bytes_per_chunk(self.forest)) / per_user)
        chunks = -(-users // min(max(1, fitting), MAX_USERS_PER_CHUNK))
        return max(1, -(-users // max(1, chunks)))

    def user_rows(self, start: int, stop: int) -> UserRows:
        """Return what a chunk needs of the users `start` to `stop - 1`."""
        tables = self.tables
        no_factors = np.zeros((stop - start, 0), np.float32)
        return UserRows(
            rows=tables.user_rows[start:stop],
            values=tables.user_values[start:stop],
            affinities=tuple(affinity.values[start:stop] for affinity in tables.affinities),
            factors=no_factors if self.factors is None else self.factors.users[start:stop],
            left_out=self.left_out.of_users(start, stop),
        )


def compile_model(
    booster: Booster,
    tables: FeatureTables,
    factors: Factors | None,
    left_out: LeftOut,
    blocked: Int64s,
) -> CompiledModel:
    """Compile a model for the posts of `tables`.

    Parameters
    ----------
    booster
        Trained on `tables.columns`.
    factors, left_out
        As in `CompiledModel`.
    blocked
        Rows of posts to exclude from all lists.

    Raises
    ------
    ModelError
        The model cannot be scored exactly, or a factor is NaN or infinite.
    """
    if factors is not None:
        _check(factors)
    forest = compile_forest(booster, tables, None if factors is None else factors.posts, blocked)
    return CompiledModel(forest, tables, factors, left_out)


def _check(factors: Factors) -> None:
    if factors.users.shape[1] != factors.posts.shape[1]:
        raise ModelError(
            f"users have {factors.users.shape[1]} factors and posts {factors.posts.shape[1]};"
            " a dot product needs the same number of both"
        )
    if not (np.isfinite(factors.users).all() and np.isfinite(factors.posts).all()):
        raise ModelError("a collaborative factor is NaN or infinite; the model is unusable")


def _with_length(future: Future[Lists]) -> tuple[int, Lists]:
    lists = future.result()
    return len(lists.rows), lists
