"""Where the tasks of a night run: threads of this process, or the workers of a Dask cluster.

A task is a part of some work, such as the lists of a range of users. It depends on one large argument that
all tasks share, such as the compiled forest, and on its own small one, such as the users' rows:

    for result in executor.map(function, shared, cut):       # cut(slots) yields the tasks, lazily
        add up the result

Results arrive in the order in which tasks end. So a caller must not depend on that order: it adds up, or
it sorts by what the result names. A task may run twice, at the same time too, and both must do the same.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Protocol, TypeVar

import redis

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., object])


class TaskContext(Protocol):
    """What a process lends to the tasks that run in it."""

    @property
    def budget_mib(self) -> float:
        """Memory in MiB for one task, in addition to its arguments."""

    @property
    def redis(self) -> redis.Redis:
        """Client of the Redis that lists are written to, for all threads of the process."""


class Executor(Protocol):
    """Runs tasks; `ThreadExecutor` and `DaskExecutor` are the two."""

    def check(self) -> None:
        """Check, before long work, that tasks could run.

        Raises
        ------
        OvernightError
            The cluster does not answer, or refuses this process.
        """

    def map(
        self,
        function: Callable[[TaskContext, Shared, Task], Result],
        shared: Shared,
        cut: Callable[[int], Iterable[Task]],
    ) -> Generator[Result, None, None]:
        """Yield `function(context, shared, task)` of each task, in the order in which they end.

        Close the generator if you may stop early, as on an error: only then has no task started any more.

        Parameters
        ----------
        function
            Of a module, so that another process finds it by its name.
        shared
            Sent once to each process.
        cut
            Yields the tasks for a number of slots, which is how many run at a time. It may be called twice.
            Tasks are taken from it in this thread, only a few more than there are slots, so that they take
            little memory.

        Raises
        ------
        OvernightError
            A task raised it, or no process is left to run tasks. Tasks in progress have ended, or can no
            longer be waited for.
        """


def uses_blas(function: Function) -> Function:
    """Mark a function for `map` whose results depend on the machine's products of matrices.

    Their last bits differ between processors. Workers with other bits than the driver run no such tasks.
    """
    function.uses_blas = True  # type: ignore[attr-defined]
    return function
