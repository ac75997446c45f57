"""A Dask cluster of real processes for tests: `python -m batch dask-scheduler` and `dask-worker`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import redis

from batch.executors.dask_executor import DaskExecutor
from batch.executors.threads import ThreadExecutor
from contract.settings import Settings
from demo.processes import free_port
from tests.support.batch import DEADLINE_SECONDS, wait_until
from tests.support.dask_tasks import GO, STARTED, Done, Step, add
from tests.support.forked_batch import Forked

Process = Forked | subprocess.Popen[bytes]

SHARED = np.arange(1_000)
BUDGET_MIB = 300


class DaskCluster:
    """Starts a scheduler and workers, and kills them at the end."""

    def __init__(self, redis_url: str) -> None:
        self.settings = Settings.of(
            redis_url=redis_url,
            scheduler=f"tcp://127.0.0.1:{free_port()}",
            dask_timeout_seconds=60,
            threads=1,
            memory_budget_mib=BUDGET_MIB,
        )
        self._processes: list[Process] = []
        self.scheduler = self._start(
            "dask-scheduler",
            "--port",
            self.settings.dask.scheduler.rpartition(":")[2],
            DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="1s",
        )
        self.workers: list[Process] = []

    def start_worker(self, **environment: str) -> Process:
        """Start a worker, which may have variables of its own; return without waiting for it."""
        worker = self._start("dask-worker", **environment)
        self.workers.append(worker)
        return worker

    def start_worker_of(self, root: Path) -> Process:
        """Start a worker that has the sources of another folder, in a new Python process."""
        worker = subprocess.Popen(
            [sys.executable, "-m", "batch", "dask-worker"],
            cwd=root,
            env=self._environment(PYTHONPATH=str(root)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._processes.append(worker)
        self.workers.append(worker)
        return worker

    def have_workers(self, number: int) -> None:
        """Let there be a number of workers, all started here."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        for worker in self.workers[number:]:
            worker.kill()
            worker.wait()
        self.workers = self.workers[:number]
        while len(self.workers) < number:
            self.start_worker()

    def kill(self, process_id: int) -> None:
        """Kill a worker, and wait for its end."""
        (worker,) = (each for each in self.workers if each.pid == process_id)
        worker.kill()
        worker.wait(DEADLINE_SECONDS)

    def executor(self, client: redis.Redis | None, **changed: object) -> DaskExecutor:
        """Return an executor for this cluster, with some settings changed."""
        threads = ThreadExecutor(1, BUDGET_MIB, client)
        return DaskExecutor(self.settings.replace(**changed), threads)

    def close(self) -> None:
        """Kill all processes."""
        for process in self._processes:
            process.kill()
            with process:
                pass

    def _start(self, *arguments: str, **environment: str) -> Forked:
        process = Forked(arguments, self._environment(**environment))
        self._processes.append(process)
        return process

    def _environment(self, **changed: str) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("OVERNIGHT_")}
        return own | self.settings.to_environment() | changed


def run_steps(executor: DaskExecutor, steps: Iterable[Step]) -> Iterator[Done]:
    """Run tasks whose shared argument is `SHARED`."""
    kept = list(steps)
    return executor.map(add, SHARED, lambda slots: kept)


class Running:
    """Tasks that run in another thread: the results so far, and the end."""

    def __init__(self, results: Iterator[Done]) -> None:
        self.results: list[Done] = []
        self.ended = Future[None]()
        threading.Thread(target=self._collect, args=(results,), daemon=True).start()

    def _collect(self, results: Iterator[Done]) -> None:
        try:
            self.results.extend(results)
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)


@contextmanager
def running(executor: DaskExecutor, steps: Iterable[Step], client: redis.Redis) -> Iterator[Running]:
    """Run tasks in another thread; at the end of the block let held tasks go on, and wait.

    Raises
    ------
    OvernightError
        That of the executor.
    """
    found = Running(run_steps(executor, steps))
    try:
        yield found
    finally:
        client.set(GO, "1")
        wait([found.ended], DEADLINE_SECONDS)
    found.ended.result(0)


def wait_for_processes(client: redis.Redis, number: int) -> list[int]:
    """Wait until held tasks run in a number of processes; return their ids."""
    wait_until(lambda: len(set(client.lrange(STARTED, 0, -1))) >= number)
    return sorted({int(process) for process in client.lrange(STARTED, 0, -1)})
