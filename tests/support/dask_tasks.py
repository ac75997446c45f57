"""Tasks that the tests of the Dask executor send to workers."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

import numpy as np

from batch.executors import TaskContext
from contract.errors import ModelError

STARTED, GO = "recs:run:test:started", "recs:run:test:go"
"""Keys in Redis: process ids that held tasks run in; exists when held tasks may go on."""

HELD, KILLS, FAILS, BUG, COUNTED = "held", "kills", "fails", "bug", "counted"

COUNT = "recs:run:test:count"
"""Key in Redis: how many counted tasks ran."""

MAX_HELD_SECONDS = 60


@dataclass(frozen=True)
class Step:
    """A task: its number, and what it does in addition to its sum."""

    number: int
    action: str = ""


@dataclass(frozen=True)
class Done:
    """Result of a task: its number, its sum, the process that it ran in, and the memory that it had."""

    number: int
    sum: int
    process: int
    budget_mib: float


def add(context: TaskContext, shared: np.ndarray, step: Step) -> Done:
    """Add the step's number to the sum of the shared argument."""
    if step.action == HELD:
        context.redis.rpush(STARTED, os.getpid())
        deadline = time.monotonic() + MAX_HELD_SECONDS
        while not context.redis.exists(GO) and context.redis.exists(STARTED):  # a test flushes at its end
            assert time.monotonic() < deadline, "nobody let this task go on"
            time.sleep(0.01)
    elif step.action == KILLS:
        os.kill(os.getpid(), signal.SIGKILL)
    elif step.action == FAILS:
        raise ModelError("the model is wrong")
    elif step.action == BUG:
        raise KeyError("a bug")
    elif step.action == COUNTED:
        context.redis.incr(COUNT)
    assert shared.flags.writeable, "functions that are compiled for arrays of threads do not take others"
    return Done(step.number, int(shared.sum()) + step.number, os.getpid(), context.budget_mib)


def measure(context: TaskContext, shared: np.ndarray, task: bytes) -> int:
    """Return the size of a task."""
    return len(task)
