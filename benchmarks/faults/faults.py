"""The faults: the blow, and how it is mended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from redis.exceptions import ReadOnlyError

from benchmarks.faults import synthetic_lists
from benchmarks.faults.environment import Stage, wait_until
from benchmarks.faults.run_fault import Fault, Meanwhile

AWHILE = 60
"""So many requests later, no client still waits for an answer to an earlier one."""

PRUNED_AFTER_SECONDS = 3.0


@contextmanager
def _calm_day(_: Stage) -> Iterator[None]:
    yield


@contextmanager
def _killed(stage: Stage) -> Iterator[None]:
    stage.store.kill()
    yield
    stage.store.start()


@contextmanager
def _emptied(stage: Stage) -> Iterator[None]:
    stage.store.kill()
    stage.store.empty()
    stage.store.start()
    yield
    with stage.store.client() as client:
        synthetic_lists.fill(client, stage.users)


@contextmanager
def _paused(stage: Stage) -> Iterator[None]:
    with stage.store.paused():
        yield


@contextmanager
def _read_only(stage: Stage) -> Iterator[None]:
    with stage.store.client() as client:
        client.replicaof("127.0.0.1", 1)  # of a master that is not there
        try:
            client.set("recs:probe", "")
        except ReadOnlyError:
            yield
        else:
            raise RuntimeError("Redis still takes writes")
        client.replicaof("NO", "ONE")


@contextmanager
def _published(stage: Stage) -> Iterator[None]:
    with stage.store.client() as client:
        synthetic_lists.write(client, 2, stage.users)
        synthetic_lists.point(client, 2)
    yield


@contextmanager
def _rolled_back(stage: Stage) -> Iterator[None]:
    with stage.store.client() as client:
        synthetic_lists.point(client, 0)
    yield


@contextmanager
def _pruned(stage: Stage) -> Iterator[None]:
    # What serves no more is pruned much later; a worker short of processor time may take its time to see it.
    pruned_at = time.monotonic() + PRUNED_AFTER_SECONDS
    wait_until(lambda: time.monotonic() > pruned_at, "time to prune")
    with stage.store.client() as client:
        synthetic_lists.prune(client, 2, stage.users)
    yield


@contextmanager
def _worker_killed(stage: Stage) -> Iterator[None]:
    _replace(stage, min(stage.worker_pids()))
    yield


@contextmanager
def _workers_killed_without_redis(stage: Stage) -> Iterator[None]:
    """Kill one worker after the other while there is no Redis to load a run from."""
    stage.store.kill()
    for pid in stage.worker_pids():
        _replace(stage, pid)
        _let_clients_ask(stage)  # each asks again once, so none may meet both
    yield
    stage.store.start()


def _replace(stage: Stage, pid: int) -> None:
    """Kill a worker, and wait until another has taken its place."""
    ready = stage.workers_that_became_ready()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: stage.workers_that_became_ready() > ready, "another worker is ready")


def _let_clients_ask(stage: Stage) -> None:
    now = time.monotonic()
    wait_until(lambda: len(stage.load.since(now)) > AWHILE, "clients ask")


def slowed(seconds: float) -> Callable[[Stage], AbstractContextManager[None]]:
    """Have Redis answer so much later."""

    @contextmanager
    def slow(stage: Stage) -> Iterator[None]:
        assert stage.wire is not None
        stage.wire.delay(seconds)
        yield
        stage.wire.delay(0)

    return slow


@contextmanager
def _failed_over(stage: Stage) -> Iterator[None]:
    """Kill the server, and have its replica at another address take over."""
    assert stage.wire is not None
    assert stage.other is not None
    stage.store.kill()
    yield
    with stage.other.client() as client:
        client.replicaof("NO", "ONE")
    stage.wire.lead_to(stage.other.port)


CALM = Fault("none", _calm_day, Meanwhile.EITHER, lasting=False)

EMPTIED = Fault("Redis restarted empty", _emptied, Meanwhile.EMPTY)
WORKER_KILLED = Fault("a worker killed", _worker_killed, Meanwhile.EITHER, lasting=False)
WITHOUT_REDIS = Fault(
    "workers killed without Redis", _workers_killed_without_redis, Meanwhile.GONE, pruned=(2,)
)

DIRECT = (
    WORKER_KILLED,
    Fault("Redis killed", _killed, Meanwhile.GONE),
    EMPTIED,
    Fault("Redis paused", _paused, Meanwhile.GONE),
    Fault("Redis read-only", _read_only, Meanwhile.EITHER),
    Fault("a run published", _published, Meanwhile.EITHER, lasting=False, afterwards=(2, 1)),
    Fault("rolled back", _rolled_back, Meanwhile.EITHER, lasting=False),
    Fault("and pruned", _pruned, Meanwhile.EITHER, lasting=False, pruned=(2,)),
    WITHOUT_REDIS,
)
"""In this order, on a stage without a wire."""


def wired(slow_seconds: float, too_slow_seconds: float) -> tuple[Fault, ...]:
    """Return the faults, in order, of a stage with a wire: slow but in time, too slow, failing over."""
    return (
        Fault(f"Redis slow by {slow_seconds * 1000:.0f} ms", slowed(slow_seconds), Meanwhile.EITHER),
        Fault(f"Redis slow by {too_slow_seconds * 1000:.0f} ms", slowed(too_slow_seconds), Meanwhile.GONE),
        Fault("Redis failing over", _failed_over, Meanwhile.GONE),
    )
