"""Tasks on the workers of a Dask cluster.

Dask carries messages, knows which workers there are, and hands large arguments from worker to worker. Which
worker gets which task is decided here, because only workers that passed a check may get one:

    for each worker that comes:   check it; send it the shared argument; it is ready
    while a task is left:
        give tasks to ready workers, a few more than they have threads
        wait for an event:        a result                   yield it
                                  a worker that left         its tasks are to be given again
                                  a worker without Redis     it gets no more tasks; its task is given again
                                  a task's error             raise it

A task that was given again may still run on the first worker. Then the later result is ignored.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from concurrent.futures import Future as LocalFuture
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import islice
from typing import Any, Generic

import numpy as np
from distributed import Future
from distributed.scheduler import KilledWorker

from batch.executors import Result, Shared, Task, TaskContext
from batch.executors.dask_cluster import POLL_SECONDS, Cluster, LostError, connect_to_cluster
from batch.executors.dask_context import (
    BLAS,
    CHECK_SECONDS,
    PROCESS,
    PROCESSOR,
    REDIS,
    End,
    Outcome,
    check_worker,
    describe_process,
    forget_map,
    prepare_worker,
    run_task,
)
from batch.executors.threads import ThreadExecutor
from batch.redis_client import readable_errors
from contract.errors import DaskError, OvernightError
from contract.keys import Keys
from contract.settings import Settings

log = logging.getLogger("batch")

Function = Callable[[TaskContext, Shared, Task], Result]
Cut = Callable[[int], Iterable[Task]]

MAX_LOST = 3
"""Workers that may end while they have a task, before the task is taken for the cause."""

MAX_WITHOUT_REDIS = 3
"""Workers on which a task may fail for want of Redis, before Redis is taken for the cause."""

WAITING_PER_THREAD = 0.25
"""Tasks that wait at a worker for each of its threads, in addition to one."""

SETTLE_SECONDS = 5.0
"""How long the first ready worker waits for workers that are being checked, as tasks are cut for all of them;
and how long other workers may take to come if none that is there can run tasks."""

GRACE_SECONDS = 5.0
"""How long tasks in progress are waited for after an error."""

FORGET_SECONDS = 2.0


@dataclass(frozen=True)
class DaskExecutor:
    """Runs tasks on the workers of a Dask cluster; a single task runs in this process.

    Attributes
    ----------
    threads
        Executor of a single task. Its client of Redis tells whether a worker has the same Redis.
    """

    settings: Settings
    threads: ThreadExecutor

    def check(self) -> None:
        """Connect to the cluster once, see `Executor.check`. Workers may come later."""
        with connect_to_cluster(self.settings):
            pass

    def map(
        self, function: Function[Shared, Task, Result], shared: Shared, cut: Cut[Task]
    ) -> Generator[Result, None, None]:
        """Run tasks, see `Executor.map`. The cluster is connected to while they run."""
        slots = max(2, self.threads.threads or len(os.sched_getaffinity(0)))
        single = _single_task(cut(slots))
        if single is not None:
            yield from self.threads.map(function, shared, lambda _: single)
            return
        with connect_to_cluster(self.settings) as cluster:
            tasks = _TaskMap[Shared, Task, Result](self, cluster, function, shared)
            try:
                yield from tasks.run(cut)
            finally:
                tasks.end()


def _single_task(tasks: Iterable[Task]) -> list[Task] | None:
    """Return the tasks if there is one at most; None if there are more: they are cut again for workers."""
    first = list(islice(tasks, 2))
    return first if len(first) < 2 else None


class State(StrEnum):
    """How far a worker is."""

    CHECKING = "checking"
    CHECKED = "checked"
    PREPARING = "preparing"
    READY = "ready"
    UNFIT = "unfit"


@dataclass(eq=False)
class _Work:
    """A pickled task, and the workers that ended or had no Redis while they had it."""

    task: Any
    lost: list[str] = field(default_factory=list)
    without_redis: list[str] = field(default_factory=list)


@dataclass(eq=False)
class _Attempt:
    """A task that was given to a worker."""

    work: _Work
    worker: _Worker
    ended: LocalFuture[Outcome] | None = None


@dataclass(eq=False)
class _Worker:
    """A worker. `step` is its check or preparation in progress, `reason` why it is unfit."""

    address: str
    threads: int
    state: State = State.CHECKING
    reason: str = ""
    process_id: str = ""
    step: LocalFuture[Any] | None = None
    attempts: set[_Attempt] = field(default_factory=set)

    def can_take(self) -> bool:
        """Whether it may get a task: a few wait while others run, so that no thread is idle."""
        return self.state is State.READY and len(self.attempts) <= self.threads * (1 + WAITING_PER_THREAD)


class _TaskMap(Generic[Shared, Task, Result]):
    """One `DaskExecutor.map`. Coroutines run in the cluster's thread; their ends are events for this one."""

    def __init__(
        self,
        executor: DaskExecutor,
        cluster: Cluster,
        function: Function[Shared, Task, Result],
        shared: Shared,
    ) -> None:
        self._id = uuid.uuid4().hex
        self._settings = executor.settings
        self._redis = executor.threads.client
        self._check_key = Keys(self._settings.stores.key_prefix).worker_check(self._id)
        self._cluster = cluster
        self._function, self._shared = function, shared
        self._here = describe_process()
        self._events = queue.SimpleQueue[tuple[Callable[[Any], None], LocalFuture[Any]]]()
        self._workers: dict[str, _Worker] = {}
        self._sharing: tuple[_Worker, LocalFuture[Future]] | None = None
        self._remote_shared: Future | None = None
        self._returned = deque[_Work]()
        self._results = deque[Result]()
        self._deadline = 0.0
        self._left = 0  # workers that could run tasks, and left
        self._hopeless_since: float | None = None

    def run(self, cut: Cut[Task]) -> Iterator[Result]:
        """Yield the results of all tasks.

        Raises
        ------
        OvernightError
            A task's, or the cluster cannot run the tasks.
        """
        self._start(self._cluster.workers(), self._see_workers)
        self._put_off_deadline()
        tasks = iter(cut(self._wait_for_workers()))
        self._put_off_deadline()
        self._hand_out(tasks)
        while any(worker.attempts for worker in self._workers.values()) or self._returned:
            self._wait_for_event()
            self._hand_out(tasks)
            while self._results:
                yield self._results.popleft()
                self._put_off_deadline()  # the caller may take its time

    def end(self) -> None:
        """Let no task start any more, and wait a little for those in progress."""
        attempts = [attempt for worker in self._workers.values() for attempt in worker.attempts]
        prepared = [each.address for each in self._workers.values() if each.process_id]
        with suppress(OSError, RuntimeError, ValueError, TimeoutError):
            self._cluster.call(self._cluster.run_at_once(prepared, forget_map, self._id), FORGET_SECONDS)
        if not self._cluster.lost:
            wait([attempt.ended for attempt in attempts if attempt.ended], GRACE_SECONDS)
        if self._redis is not None:
            with suppress(OvernightError), readable_errors(self._settings):
                self._redis.delete(self._check_key)

    def _wait_for_workers(self) -> int:
        """Wait for workers that are ready, and return the number of their threads."""
        settled = None
        while True:
            ready = [worker for worker in self._workers.values() if worker.state is State.READY]
            if ready:
                settled = settled or time.monotonic() + SETTLE_SECONDS
                coming = len(ready) < len(self._workers) - self._unfit()
                if not coming or time.monotonic() > settled:
                    slots = sum(worker.threads for worker in ready)
                    log.info(
                        "%s Dask workers with %s threads at %s", len(ready), slots, self._cluster.address
                    )
                    return slots
            self._wait_for_event()

    def _unfit(self) -> int:
        return sum(worker.state is State.UNFIT for worker in self._workers.values())

    def _hand_out(self, tasks: Iterator[Task]) -> None:
        """Give tasks to the workers that can take one."""
        while workers := [worker for worker in self._workers.values() if worker.can_take()]:
            if self._returned:
                work = self._returned.popleft()
            else:
                task = next(tasks, None)
                if task is None:
                    return
                work = _Work(_pickled(task))
            worker = min(workers, key=lambda each: len(each.attempts) / each.threads)
            attempt = _Attempt(work, worker)
            worker.attempts.add(attempt)
            attempt.ended = self._start(
                self._cluster.run(worker.address, run_task, self._id, work.task),
                partial(self._end_attempt, attempt),
            )

    def _wait_for_event(self) -> None:
        """Handle the next event.

        Raises
        ------
        DaskError
            All workers are unfit, or nothing has been achieved for too long.
        """
        if not self._is_hopeless():
            self._hopeless_since = None
        elif self._hopeless_since is None:
            self._hopeless_since = time.monotonic()
        elif time.monotonic() > self._hopeless_since + SETTLE_SECONDS and not self._left:
            raise self._unfit_error()  # if some left, they may come back
        try:
            handle, ended = self._events.get(timeout=POLL_SECONDS)
        except queue.Empty:
            pass
        else:
            handle(ended)
        if time.monotonic() > self._deadline and self._events.empty():
            raise self._timeout_error()

    def _is_hopeless(self) -> bool:
        return bool(self._workers) and self._unfit() == len(self._workers)

    def _unfit_error(self) -> DaskError:
        worker = next(iter(self._workers.values()))
        left = f" ({self._left} left)" if self._left else ""
        return DaskError(f"no Dask worker can run tasks{left}; {worker.address}: {worker.reason}")

    def _timeout_error(self) -> DaskError:
        seconds = self._settings.dask.dask_timeout_seconds
        if self._is_hopeless():
            return self._unfit_error()
        if not self._workers:
            return DaskError(
                f"the Dask scheduler {self._cluster.address} has had no worker for {seconds} s; "
                "start workers, or empty OVERNIGHT_DASK to use threads of this machine"
            )
        addresses = ", ".join(islice(self._workers, 3)) + (", ..." if len(self._workers) > 3 else "")
        return DaskError(
            f"no result of a Dask worker for {seconds} s ({addresses}); check whether they hang, or raise "
            "OVERNIGHT_DASK_TIMEOUT_SECONDS"
        )

    def _put_off_deadline(self) -> None:
        self._deadline = time.monotonic() + self._settings.dask.dask_timeout_seconds

    def _start(
        self, coroutine: Coroutine[Any, Any, Any], handle: Callable[[LocalFuture[Any]], None]
    ) -> LocalFuture[Any]:
        """Run a coroutine; when it has ended, this thread handles it."""
        future = self._cluster.start(coroutine)
        future.add_done_callback(lambda ended: self._events.put((handle, ended)))
        return future

    def _see_workers(self, ended: LocalFuture[dict[str, int]]) -> None:
        """Take note of workers that came or left."""
        present = ended.result()
        for address in set(self._workers) - set(present):
            self._remove(self._workers.pop(address))
        for address, threads in present.items():
            if address not in self._workers:
                self._workers[address] = worker = _Worker(address, threads)
                self._check(worker)
        self._start(self._cluster.workers(POLL_SECONDS), self._see_workers)

    def _remove(self, worker: _Worker) -> None:
        """Take back what a worker had that left."""
        self._left += worker.state is not State.UNFIT
        if worker.step is not None:
            worker.step.cancel()
        if self._sharing is not None and self._sharing[0] is worker:
            self._sharing[1].cancel()
            self._sharing = None
        count = len(worker.attempts)
        log.log(
            logging.WARNING if count else logging.INFO,
            "the Dask worker %s left; %s",
            worker.address,
            f"its tasks ({count}) run elsewhere" if count else "it had no task",
        )
        for attempt in list(worker.attempts):
            if attempt.ended is not None:
                attempt.ended.cancel()
            self._lose(attempt)
        self._advance()

    def _lose(self, attempt: _Attempt) -> None:
        """Give a task back whose worker ended.

        Raises
        ------
        DaskError
            Too many workers ended with it.
        """
        self._give_back(attempt)
        lost = attempt.work.lost
        lost.append(attempt.worker.address)
        if len(lost) >= MAX_LOST:
            raise _poisonous(lost)

    def _give_back(self, attempt: _Attempt) -> None:
        attempt.worker.attempts.discard(attempt)
        self._returned.append(attempt.work)

    def _check(self, worker: _Worker) -> None:
        """Check a worker."""
        worker.state, worker.process_id = State.CHECKING, ""
        key, value = "", ""
        if self._redis is not None:
            key, value = self._check_key, self._id
            with readable_errors(self._settings):
                self._redis.set(key, value, ex=CHECK_SECONDS)
        worker.step = self._start(
            self._cluster.run(worker.address, check_worker, key, value),
            partial(self._see_check, worker),
        )

    def _see_check(self, worker: _Worker, ended: LocalFuture[dict[str, str]]) -> None:
        found = self._step_result(worker, ended)
        if found is None:
            return
        needs_blas = getattr(self._function, "uses_blas", False)
        reason = why_unfit(self._here, found, needs_blas=needs_blas)
        if reason:
            self._reject(worker, reason)
            return
        for name in (BLAS, PROCESSOR):
            if found[name] != self._here[name]:
                log.info(
                    "the Dask worker %s has %s %s, here %s; lists are the same",
                    worker.address,
                    name,
                    found[name],
                    self._here[name],
                )
        worker.state, worker.process_id = State.CHECKED, found[PROCESS]
        self._advance()

    def _step_result(self, worker: _Worker, ended: LocalFuture[Any]) -> Any:
        """Return the result of a worker's check or preparation; None if it has to be ignored."""
        if self._workers.get(worker.address) is not worker or worker.step is not ended:
            return None
        error = _error_of(ended)
        if error is None:
            return ended.result()
        self._require_scheduler()
        if isinstance(error, LostError):  # no worker has the shared argument any more
            self._remote_shared = None
            self._check(worker)
        else:
            self._reject(worker, f"its check failed: {_one_line(error)}")
        return None

    def _advance(self) -> None:
        """Prepare checked workers; the first one gets the shared argument from here, others from workers."""
        checked = [worker for worker in self._workers.values() if worker.state is State.CHECKED]
        if not checked or self._sharing is not None:
            return
        if self._remote_shared is None:
            future = self._start(self._cluster.share(self._shared, checked[0].address), self._see_shared)
            self._sharing = checked[0], future
            return
        function = pickle.dumps(self._function)
        for worker in checked:
            worker.state = State.PREPARING
            worker.step = self._start(
                self._cluster.run(worker.address, prepare_worker, self._id, function, self._remote_shared),
                partial(self._see_prepared, worker),
            )

    def _see_shared(self, ended: LocalFuture[Future]) -> None:
        if self._sharing is None or self._sharing[1] is not ended:
            return
        worker, _ = self._sharing
        self._sharing = None
        error = _error_of(ended)
        if error is None:
            self._remote_shared = ended.result()
        else:
            self._require_scheduler()
            self._reject(worker, f"the shared argument cannot be sent to it: {_one_line(error)}")
        self._advance()

    def _see_prepared(self, worker: _Worker, ended: LocalFuture[bool]) -> None:
        if self._step_result(worker, ended):
            worker.state = State.READY
            self._put_off_deadline()

    def _reject(self, worker: _Worker, reason: str) -> None:
        """Give a worker no more tasks."""
        log.warning("the Dask worker %s gets no tasks: %s", worker.address, reason)
        worker.state, worker.reason = State.UNFIT, reason
        if worker.attempts:  # those that wait come back at once
            self._start(self._cluster.run_at_once([worker.address], forget_map, self._id), lambda ended: None)

    def _end_attempt(self, attempt: _Attempt, ended: LocalFuture[Outcome]) -> None:
        """Take the result of a task, or give it to another worker.

        Raises
        ------
        OvernightError
            The task's error.
        """
        worker, work = attempt.worker, attempt.work
        attempt.ended = None  # it refers to the attempt: its task would stay until the garbage collector runs
        if attempt not in worker.attempts:
            return
        error = _error_of(ended)
        if error is not None:
            self._require_scheduler()
            if isinstance(error, KilledWorker):
                raise _poisonous([*work.lost, worker.address])
            log.debug("a task was lost on %s: %s", worker.address, _one_line(error))
            self._lose(attempt)
            return
        outcome = ended.result()
        if outcome.end is End.DONE:
            worker.attempts.discard(attempt)
            self._results.append(pickle.loads(outcome.value))
            self._put_off_deadline()
        elif outcome.end is End.UNPREPARED:
            if outcome.message == worker.process_id:
                self._give_back(attempt)
            else:
                self._lose(attempt)
            if worker.state is State.READY:
                self._check(worker)
        elif outcome.end is End.NO_REDIS:
            self._give_back(attempt)
            work.without_redis.append(worker.address)
            if worker.state is not State.UNFIT:
                self._reject(worker, outcome.message)
            if len(work.without_redis) >= MAX_WITHOUT_REDIS:
                raise DaskError(f"Dask workers cannot write to Redis; {worker.address}: {outcome.message}")
        else:
            log.debug("traceback of the Dask worker %s: %s", worker.address, outcome.detail)
            raise _task_error(worker.address, outcome)

    def _require_scheduler(self) -> None:
        if self._cluster.lost:
            raise self._cluster.lost_error()


def why_unfit(here: dict[str, str], found: dict[str, str], *, needs_blas: bool) -> str:
    """Return why a worker may not run tasks; empty if it may.

    Parameters
    ----------
    here, found
        What `describe_process` returns here, and `check_worker` there.
    needs_blas
        Products of matrices must be the same too.
    """
    for name, value in here.items():
        ignored = name == PROCESSOR or (name == BLAS and not needs_blas)
        if not ignored and found.get(name) != value:
            return f"its {name} is {found.get(name, 'unknown')}, here {value}; install the same on both"
    return found.get(REDIS, "")


def _pickled(task: object) -> Any:
    """Return a pickled task as an array, which Dask transfers without copies; it would copy bytes."""
    return np.frombuffer(pickle.dumps(task, protocol=pickle.HIGHEST_PROTOCOL), dtype=np.uint8)


def _task_error(worker: str, outcome: Outcome) -> OvernightError:
    """Return the error that a task raised on a worker."""
    if outcome.end is End.UNEXPECTED:
        return DaskError(
            f"a task failed on the Dask worker {worker}: {outcome.message}; see the log of the worker"
        )
    kind = pickle.loads(outcome.value)
    try:
        error = kind(outcome.message)
    except TypeError:
        error = OvernightError(outcome.message)
    return error  # type: ignore[no-any-return]


def _poisonous(workers: list[str]) -> DaskError:
    return DaskError(
        f"a task was lost with each of the Dask workers that ran it ({', '.join(workers)}); see their logs, "
        "and whether their machines have memory for OVERNIGHT_MEMORY_BUDGET_MIB"
    )


def _error_of(ended: LocalFuture[Any]) -> BaseException | None:
    """Return the error of a coroutine that has ended; None if it returned."""
    return LostError() if ended.cancelled() else ended.exception()


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
