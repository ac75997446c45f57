"""Tasks in threads of this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice

import redis

from batch.executors import Result, Shared, Task, TaskContext


@dataclass(frozen=True)
class LocalContext:
    """The context of tasks in this process; `client` is None if they do not use Redis."""

    budget_mib: float
    client: redis.Redis | None

    @property
    def redis(self) -> redis.Redis:
        """The client of tasks that write."""
        assert self.client is not None
        return self.client


@dataclass(frozen=True)
class ThreadExecutor:
    """Runs tasks in threads.

    Attributes
    ----------
    threads
        Tasks in progress at a time; 0 for the number of cores.
    budget_mib
        Memory of all of them.
    client
        What tasks that write use; None without such tasks.
    """

    threads: int
    budget_mib: float
    client: redis.Redis | None = None

    def check(self) -> None:
        """Check nothing: threads can always be started."""

    def map(
        self,
        function: Callable[[TaskContext, Shared, Task], Result],
        shared: Shared,
        cut: Callable[[int], Iterable[Task]],
    ) -> Generator[Result, None, None]:
        """Run tasks, see `Executor.map`."""
        slots = self.threads or len(os.sched_getaffinity(0))
        context = LocalContext(self.budget_mib / slots, self.client)
        tasks = iter(cut(slots))
        with ThreadPoolExecutor(slots) as pool:
            running: set[Future[Result]] = set()
            try:
                while True:
                    # One more than runs, so that no thread waits for the next task.
                    for task in islice(tasks, slots + 1 - len(running)):
                        running.add(pool.submit(function, context, shared, task))
                    if not running:
                        return
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            finally:
                for future in running:
                    future.cancel()
