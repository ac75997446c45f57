"""Processes of a Dask cluster in tests: start them, and read their logs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from batch.executors import TaskContext
from batch.publishing.encode import ListEncoder
from batch.publishing.sender import Fence, sending
from batch.redis_client import get_many
from tests.support.batch import start_batch
from tests.support.forked_batch import Forked
from tests.support.serving import CONTROL_RUN, KEYS

PASSWORD = "password-of-redis-0123456789"
SERVERS: dict[str, Any] = {
    "database_url": "postgresql://nobody@127.0.0.1:1/none",
    "redis_url": f"redis://worker:{PASSWORD}@127.0.0.1:1/0",
    "model_dir": Path(os.devnull),
}
"""Servers that are not there: a scheduler has no use for any, a worker for Redis alone."""


def start(*arguments: str, **environment: str) -> AbstractContextManager[Forked]:
    """Start a command; `redis_url` replaces that of `SERVERS`."""
    return start_batch(*arguments, **{**SERVERS, **environment})


def line_of(process: Forked, pattern: str) -> re.Match[str]:
    """Read its log up to a line with the pattern."""
    read = []
    for line in process.stderr:
        read.append(line)
        if found := re.search(pattern, line):
            return found
    raise AssertionError(f"no {pattern!r} in {read}")


@contextmanager
def running_scheduler(port: int = 0, **environment: str) -> Iterator[tuple[Forked, str]]:
    """Yield a scheduler and its address."""
    with start("dask-scheduler", "--port", str(port), **environment) as process:
        yield process, line_of(process, r"listens on (\S+);")[1]


def write_and_read(context: TaskContext, fence: Fence, user_id: int) -> str:
    """Write a user's list as a night's task does, and return what Redis has then."""
    encoder = ListEncoder(np.array([10, 20]))
    lines = encoder.lines(np.array([user_id]), np.int32([[0, 1]]), np.float32([[0.5, 0.25]]))
    name = KEYS.user(CONTROL_RUN, user_id)
    with sending(context.redis, name.removesuffix(str(user_id)), fence) as send:
        send(lines)
    return str(get_many(context.redis, [name])[0])
