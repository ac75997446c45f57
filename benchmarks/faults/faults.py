"""The faults: how each is injected and reverted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from redis.exceptions import ReadOnlyError

from benchmarks.faults import synthetic_lists
from benchmarks.faults.environment import Environment, wait_until
from benchmarks.faults.run_fault import ExpectedBehaviour, Fault

MIN_REQUESTS = 60
"""After so many more requests, no client still waits for the answer to an earlier one."""

PRUNE_AFTER_SECONDS = 3.0


@contextmanager
def _no_fault(_: Environment) -> Iterator[None]:
    yield


@contextmanager
def _redis_killed(environment: Environment) -> Iterator[None]:
    environment.redis.kill()
    yield
    environment.redis.start()


@contextmanager
def _connections_killed(environment: Environment) -> Iterator[None]:
    with environment.redis.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
    yield


@contextmanager
def _redis_emptied(environment: Environment) -> Iterator[None]:
    environment.redis.kill()
    environment.redis.remove_data()
    environment.redis.start()
    yield
    with environment.redis.client() as client:
        synthetic_lists.fill(client, environment.users)


@contextmanager
def _redis_paused(environment: Environment) -> Iterator[None]:
    with environment.redis.paused():
        yield


@contextmanager
def _redis_read_only(environment: Environment) -> Iterator[None]:
    with environment.redis.client() as client:
        client.replicaof("127.0.0.1", 1)  # a master that does not exist
        try:
            client.set("recs:probe", "")
        except ReadOnlyError:
            yield
        else:
            raise RuntimeError("Redis still accepts writes")
        client.replicaof("NO", "ONE")


@contextmanager
def _run_published(environment: Environment) -> Iterator[None]:
    with environment.redis.client() as client:
        synthetic_lists.write(client, 2, environment.users)
        synthetic_lists.set_live(client, 2)
    yield


@contextmanager
def _run_rolled_back(environment: Environment) -> Iterator[None]:
    with environment.redis.client() as client:
        synthetic_lists.set_live(client, 0)
    yield


@contextmanager
def _run_pruned(environment: Environment) -> Iterator[None]:
    # In production a run is pruned long after it was live; on a busy machine a worker may notice late.
    prune_at = time.monotonic() + PRUNE_AFTER_SECONDS
    wait_until(lambda: time.monotonic() > prune_at, "time to prune")
    with environment.redis.client() as client:
        synthetic_lists.prune(client, 2, environment.users)
    yield


@contextmanager
def _worker_killed(environment: Environment) -> Iterator[None]:
    _replace_worker(environment, min(environment.worker_pids()))
    yield


@contextmanager
def _workers_killed_without_redis(environment: Environment) -> Iterator[None]:
    """Kill one worker after the other while there is no Redis to load a run from."""
    environment.redis.kill()
    for pid in environment.worker_pids():
        _replace_worker(environment, pid)
        _wait_for_requests(environment)  # a client retries once, so no request may meet both kills
    yield
    environment.redis.start()


def _replace_worker(environment: Environment, pid: int) -> None:
    """Kill a worker, and wait until another one is ready."""
    ready = environment.count_ready_workers()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: environment.count_ready_workers() > ready, "another worker is ready")


def _wait_for_requests(environment: Environment) -> None:
    now = time.monotonic()
    wait_until(lambda: len(environment.load.since(now)) > MIN_REQUESTS, "clients get answers")


def redis_slow(seconds: float) -> Callable[[Environment], AbstractContextManager[None]]:
    """Return a fault that delays every message to Redis."""

    @contextmanager
    def slow(environment: Environment) -> Iterator[None]:
        assert environment.proxy is not None
        environment.proxy.delay(seconds)
        yield
        environment.proxy.delay(0)

    return slow


@contextmanager
def _redis_failed_over(environment: Environment) -> Iterator[None]:
    """Kill the server; revert by promoting its replica, at another address."""
    assert environment.proxy is not None
    assert environment.replica is not None
    assert environment.replica_port is not None
    environment.redis.kill()
    yield
    with environment.replica.client() as client:
        client.replicaof("NO", "ONE")
    environment.proxy.switch_to(environment.replica_port)


EITHER, GONE, EMPTY = ExpectedBehaviour.EITHER, ExpectedBehaviour.GONE, ExpectedBehaviour.EMPTY

NO_FAULT = Fault("none", _no_fault, EITHER, lasting=False)
REDIS_EMPTIED = Fault("Redis restarted empty", _redis_emptied, EMPTY)
WORKER_KILLED = Fault("a worker killed", _worker_killed, EITHER, lasting=False)
WITHOUT_REDIS = Fault("workers killed without Redis", _workers_killed_without_redis, GONE, pruned=(2,))

DIRECT_FAULTS = (
    WORKER_KILLED,
    Fault("Redis killed", _redis_killed, GONE),
    REDIS_EMPTIED,
    Fault("Redis paused", _redis_paused, GONE),
    Fault("Redis read-only", _redis_read_only, EITHER),
    Fault("a run published", _run_published, EITHER, lasting=False, afterwards=(2, 1)),
    Fault("rolled back", _run_rolled_back, EITHER, lasting=False),
    Fault("and pruned", _run_pruned, EITHER, lasting=False, pruned=(2,)),
    WITHOUT_REDIS,
)
"""In this order, in an environment without a proxy."""


def proxied_faults(slow_seconds: float, too_slow_seconds: float) -> tuple[Fault, ...]:
    """Return the faults, in order, of an environment with a proxy."""
    return (
        Fault("connections killed", _connections_killed, EITHER, lasting=False),
        Fault(f"Redis slow by {slow_seconds * 1000:.0f} ms", redis_slow(slow_seconds), EITHER),
        Fault(f"Redis slow by {too_slow_seconds * 1000:.0f} ms", redis_slow(too_slow_seconds), GONE),
        Fault("Redis failing over", _redis_failed_over, GONE),
    )
