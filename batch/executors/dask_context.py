"""What workers of a Dask cluster run: the check of a worker, and the tasks of an `Executor.map`.

Each map has an id. The driver checks a worker, prepares it for the map, and then sends tasks, which name the
map. So a process that is not prepared runs no task: not even one that took the address of another.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import pickle
import platform
import threading
import traceback
import uuid
from collections import Counter, OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import redis
from distributed import get_worker
from redis.exceptions import (
    ConnectionError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
    TimeoutError,
)
from threadpoolctl import threadpool_limits

import contract
from batch.executors import TaskContext
from batch.redis_client import connected, describe, open_redis, readable_errors
from contract.errors import OvernightError, StoreError
from contract.logs import redact
from contract.settings import Settings

PACKAGES = ("numpy", "numba", "llvmlite", "distributed")
"""Packages whose versions must be the driver's: of what computes and of what transfers."""

BLAS, PROCESSOR = "BLAS", "processor"
"""Names in a process's description: digest of products of matrices, LLVM's name of the processor."""

REDIS, PROCESS = "Redis", "process"
"""Names in a worker's report: why it cannot use Redis, and which process it is."""

CHECK_SECONDS = 600
"""How long the driver's key for checks lives after it was last written."""

MAPS_KEPT = 2
"""Shared arguments that a worker keeps. A driver that was killed cannot tell it to forget one."""

WORKER_FAULTS = (ConnectionError, TimeoutError, NoPermissionError)
"""Errors of Redis that may be the fault of one worker: its network, its URL, its rights."""

PROCESS_ID = uuid.uuid4().hex


@dataclass(frozen=True)
class WorkerContext:
    """The context of tasks in a worker, from the worker's own settings."""

    budget_mib: float
    redis: redis.Redis


class End(StrEnum):
    """How a task ended."""

    DONE = "done"
    UNPREPARED = "unprepared"
    NO_REDIS = "no Redis"
    EXPECTED = "expected error"
    UNEXPECTED = "unexpected error"


class Outcome(NamedTuple):
    """How a task ended, and with what: the pickled result, or the error's type; a message; a traceback."""

    end: End
    value: bytes = b""
    message: str = ""
    detail: str = ""


@dataclass(frozen=True)
class _Map:
    function: Any
    shared: Any


_maps: OrderedDict[str, _Map] = OrderedDict()
_lock = threading.Lock()
_tasks_done = Counter[str]()
"""Name of a task's function -> tasks that this process has run to their ends."""


def describe_process() -> dict[str, str]:
    """Return what decides whether two processes do the same: name -> version or digest."""
    return {
        "source code": _source_digest(),
        "Python": ".".join(platform.python_version_tuple()[:2]),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        BLAS: _blas_digest(),
        PROCESSOR: _processor(),
    }


def check_worker(key: str, value: str) -> dict[str, str]:
    """Return `describe_process`, and why this worker cannot use the driver's Redis; empty if it can.

    Parameters
    ----------
    key, value
        What the driver has written to its Redis; an empty key: tasks do not use Redis.
    """
    # From now on: a product's last bits depend on the number of threads.
    threadpool_limits(1, user_api="blas")
    return {
        **describe_process(),
        PROCESS: PROCESS_ID,
        REDIS: _why_no_redis(key, value) if key else "",
    }


def prepare_worker(map_id: str, function: bytes, shared: Any) -> bool:
    """Keep what the tasks of a map share: the pickled function, and its shared argument."""
    found = _Map(pickle.loads(function), shared)
    with _lock:
        _maps[map_id] = found
        while len(_maps) > MAPS_KEPT:
            _maps.popitem(last=False)
    return True


def count_tasks() -> int:
    """Return how many tasks this process has run to their ends."""
    with _lock:
        return sum(_tasks_done.values())


def forget_map(map_id: str) -> None:
    """Release what the tasks of a map share. Tasks that have not started will not run."""
    with _lock:
        _maps.pop(map_id, None)


def run_task(map_id: str, task: Any) -> Outcome:
    """Run a task, and return its result or error.

    An error is returned because Dask would log a raised one with the arguments of the task.

    Parameters
    ----------
    task
        Buffer with the pickled task.
    """
    with _lock:
        found = _maps.get(map_id)
        if found is None:
            return Outcome(End.UNPREPARED, message=PROCESS_ID)
        _maps.move_to_end(map_id)
    try:
        result = found.function(_context(), found.shared, pickle.loads(task))
        with _lock:
            _tasks_done[found.function.__name__] += 1
        return Outcome(End.DONE, pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL))
    except (RedisError, RedisClusterException) as error:
        return _redis_failed(error)
    except OvernightError as error:
        if isinstance(error.__context__, WORKER_FAULTS):
            return Outcome(End.NO_REDIS, message=_redacted(str(error)))
        return Outcome(End.EXPECTED, pickle.dumps(type(error)), _redacted(str(error)))
    except Exception as error:  # noqa: BLE001 - the driver raises it in one line
        text = _redacted(" ".join(f"{type(error).__name__}: {error}".split()))
        return Outcome(End.UNEXPECTED, message=text, detail=_redacted(traceback.format_exc()))


@cache
def _settings() -> Settings:
    return Settings.from_environment()


@cache
def _context() -> TaskContext:
    """Return the context of all tasks of this process."""
    settings = _settings()
    return WorkerContext(settings.night.memory_budget_mib / get_worker().state.nthreads, open_redis(settings))


def _redacted(text: str) -> str:
    return redact(text, _settings().secrets())


def _redis_failed(error: RedisError | RedisClusterException) -> Outcome:
    try:
        with readable_errors(_settings()):
            raise error
    except StoreError as readable:
        if isinstance(error, WORKER_FAULTS):
            return Outcome(End.NO_REDIS, message=str(readable))
        return Outcome(End.EXPECTED, pickle.dumps(StoreError), str(readable))


def _why_no_redis(key: str, value: str) -> str:
    try:
        settings = Settings.from_environment()
        with connected(settings, interactive=True) as client:
            if client.get(key) != value:
                return f"{describe(settings)} is not the batch's; give the worker the REDIS_URL of the batch"
            client.set(key, value, ex=CHECK_SECONDS)
    except OvernightError as error:
        return redact(str(error), _settings().secrets())
    return ""


@cache
def _source_digest() -> str:
    """Return a digest of the source files of `batch` and `contract`."""
    digest = hashlib.sha256()
    packages = [Path(__file__).parents[1], Path(str(contract.__file__)).parent]
    for package in packages:
        for path in sorted(package.rglob("*.py")):
            digest.update(f"{path.relative_to(package.parent)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@cache
def _blas_digest() -> str:
    """Return a digest of products of matrices, whose last bits depend on how BLAS adds."""
    digest = hashlib.sha256()
    whole = np.arange(300 * 80, dtype=np.int64) * 2_654_435_761 % 1_009
    with threadpool_limits(1, user_api="blas"):  # as tasks run
        for kind in (np.float32, np.float64):
            left = (whole.astype(kind) / np.array(1_009, dtype=kind)).reshape(300, 80)
            digest.update(np.ascontiguousarray(left @ left[::-1].T).tobytes())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """Return LLVM's name of the processor that Numba compiles for."""
    from llvmlite.binding import get_host_cpu_name  # takes a tenth of a second

    return os.environ.get("NUMBA_CPU_NAME") or str(get_host_cpu_name())
