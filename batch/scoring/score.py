"""Models compiled for the posts of a network, and tasks that score ranges of its users."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from batch.arrays import Float32s, Int32s, Int64s
from batch.executors import Executor, TaskContext
from batch.features.factors import Factors
from batch.features.tables import UserTables
from batch.loading.left_out import LeftOut
from batch.scoring.chunk import Lists, UserRows, bytes_per_chunk, bytes_per_chunk_user, score_chunk
from batch.scoring.compile import CompiledForest, compile_forest
from batch.scoring.forest import Booster
from contract.errors import ModelError

MIB = 2**20

PART_USERS = 1_024
"""Tasks begin at multiples of it, so that what is computed of so many users does not depend on the tasks."""

MIN_USERS_PER_TASK, MAX_USERS_PER_TASK = 2 * PART_USERS, 16 * PART_USERS
"""A smaller task is mostly overhead; a larger one would show progress, and be repeated, too late."""

TASKS_PER_SLOT = 4
"""At least so many, if tasks do not become too small: then slots end at about the same time."""

ScoringTask = tuple[int, UserRows]
"""Number of users before the task's first, and what the scores of its users depend on."""


@dataclass(frozen=True)
class CompiledModel:
    """A model compiled for some posts, with all that its users' scores depend on.

    Attributes
    ----------
    forest
        Compiled for the posts of `tables` that are not blocked.
    tables
        The features of users, which are made or looked up when a task is cut.
    factors
        Their dot product is added to the forest's raw score; None for none.
    left_out
        Posts to exclude from each user's list.
    """

    forest: CompiledForest
    tables: UserTables
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

    def score(self, n: int, executor: Executor, users: int | None = None) -> tuple[Int32s, Float32s]:
        """Return the lists of the first users, or of all: (users, n) posts, -1 pads, and scores, NaN pads."""
        users = self.tables.users if users is None else users
        posts, scores = np.empty((users, n), np.int32), np.empty((users, n), np.float32)
        with closing(
            executor.map(score_users, (self.forest, n), lambda slots: self.cut(users, slots))
        ) as tasks:
            for first, of_task in tasks:
                rows = slice(first, first + len(of_task[0]))
                posts[rows], scores[rows] = of_task
        return posts, scores

    def cut(self, users: int, slots: int) -> Iterator[ScoringTask]:
        """Cut the first users into tasks, for so many at a time."""
        size = users_per_task(users, slots)
        for first in range(0, users, size):
            yield first, self.user_rows(first, min(first + size, users))

    def user_rows(self, start: int, stop: int) -> UserRows:
        """Return what the scores of the users `start` to `stop - 1` depend on."""
        tables = self.tables.of_users(slice(start, stop))
        no_factors = np.zeros((stop - start, 0), np.float32)
        return UserRows(
            values=tables.user_values,
            affinities=tuple(affinity.values for affinity in tables.affinities),
            factors=no_factors if self.factors is None else self.factors.users[start:stop],
            left_out=self.left_out.of_users(start, stop),
        )


def users_per_task(users: int, slots: int) -> int:
    """Return the users of a task: a multiple of PART_USERS, and tasks are of similar size."""
    largest = min(max(users // (TASKS_PER_SLOT * slots), MIN_USERS_PER_TASK), MAX_USERS_PER_TASK)
    tasks = -(-users // largest)
    return PART_USERS * max(1, -(-users // (PART_USERS * max(1, tasks))))


def score_users(
    context: TaskContext, shared: tuple[CompiledForest, int], task: ScoringTask
) -> tuple[int, tuple[Int32s, Float32s]]:
    """Return the number of users before the task, and the posts and scores of their lists."""
    (forest, n), (first, rows) = shared, task
    chunks = [lists for _, lists in score_in_chunks(forest, rows, n, context.budget_mib)]
    posts, scores = [lists.posts for lists in chunks], [lists.scores for lists in chunks]
    return first, (np.concatenate(posts), np.concatenate(scores))


def score_in_chunks(
    forest: CompiledForest, rows: UserRows, n: int, budget_mib: float
) -> Iterator[tuple[slice, Lists]]:
    """Score users, as many at a time as the memory allows; yield (which of the users, their lists)."""
    users = len(rows.values)
    size = users_per_chunk(forest, rows, n, budget_mib)
    for start in range(0, users, size):
        some = slice(start, min(start + size, users))
        yield some, score_chunk(forest, rows.part(some.start, some.stop), n)


def users_per_chunk(forest: CompiledForest, rows: UserRows, n: int, budget_mib: float) -> int:
    """Return how many users fit a chunk's budget, at least one, so that chunks are of similar size."""
    users, affinity_values = len(rows.values), sum(values[0:1].size for values in rows.affinities)
    per_user = bytes_per_chunk_user(forest, affinity_values, n)
    fitting = int((budget_mib * MIB - bytes_per_chunk(forest)) / per_user)
    chunks = -(-users // max(1, fitting))
    return max(1, -(-users // max(1, chunks)))


def compile_model(
    booster: Booster,
    tables: UserTables,
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
    of_posts = tables.of_users(slice(0, 0))
    forest = compile_forest(booster, of_posts, None if factors is None else factors.posts, blocked)
    return CompiledModel(forest, tables, factors, left_out)


def _check(factors: Factors) -> None:
    if factors.users.shape[1] != factors.posts.shape[1]:
        raise ModelError(
            f"users have {factors.users.shape[1]} factors and posts {factors.posts.shape[1]};"
            " a dot product needs the same number of both"
        )
    if not (np.isfinite(factors.users).all() and np.isfinite(factors.posts).all()):
        raise ModelError("a collaborative factor is NaN or infinite; the model is unusable")
