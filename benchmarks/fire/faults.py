"""The faults: how each befalls a stage and is mended, and what answers must say meanwhile."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus

from redis.exceptions import ReadOnlyError

from benchmarks.fire import lists
from benchmarks.fire.asking import Seen
from benchmarks.fire.stage import Stage, wait_until

AWHILE = 60
"""So many requests later, no client still waits for an answer to an earlier one."""


class Meanwhile(Enum):
    """What first pages of users with lists must say while a fault lasts."""

    EITHER = "personal, or popular and stale"
    GONE = "popular and stale"
    EMPTY = "popular, and stale as soon as a refresh has seen it"


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes
    ----------
    strikes
        Befalls the stage when entered, and mends it when left.
    lasting
        Whether recovery counts from the mending; else from the blow itself.
    afterwards
        The runs that must be served in the end.
    pruned
        The runs whose cursors may be answered with 410, which is by design.
    """

    name: str
    strikes: Callable[[Stage], AbstractContextManager[None]]
    meanwhile: Meanwhile
    lasting: bool = True
    afterwards: tuple[int, int] = (0, 1)
    pruned: tuple[int, ...] = ()


@dataclass(frozen=True)
class Befallen:
    """What happened.

    Attributes
    ----------
    seen
        What was asked from the blow until all was well again and stayed so.
    began
        When the blow had fallen.
    recovery_seconds
        From the mending (or the blow) to the end of the last answer that was not as usual.
    untrue
        What answers said of themselves that was not so, a line each.
    """

    fault: Fault
    seen: list[Seen]
    began: float
    recovery_seconds: float
    untrue: list[str]


def befall(stage: Stage, fault: Fault, lasts_seconds: float, calm_seconds: float) -> Befallen:
    """Let a fault befall the stage for so long, and wait until all is well again for so long."""
    before = time.monotonic()
    with fault.strikes(stage):
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + lasts_seconds, "time passes")
        if fault.meanwhile is Meanwhile.EMPTY:
            wait_until(
                lambda: _calm(stage, began, calm_seconds, _is_stale), "all answers say that they are stale"
            )
        until = time.monotonic()
    start = time.monotonic() if fault.lasting else before

    def is_well(seen: Seen) -> bool:
        return _is_well(seen, fault.afterwards)

    wait_until(lambda: _calm(stage, start, calm_seconds, is_well), f"all is well after: {fault.name}")
    unwell = [seen.answered for seen in stage.load.since(start) if not is_well(seen)]
    seen = stage.load.since(before)
    return Befallen(fault, seen, began, max([0.0, *(moment - start for moment in unwell)]),
                    _untrue(fault, seen, began, until))  # fmt: skip


def _calm(stage: Stage, start: float, seconds: float, is_right: Callable[[Seen], bool]) -> bool:
    """Tell whether everything asked lately was right, users with lists among it."""
    now = time.monotonic()
    lately = stage.load.since(now - seconds)
    return (
        now > start + seconds
        and any(seen.first_page_of_known for seen in lately)
        and all(map(is_right, lately))
    )


def _is_stale(seen: Seen) -> bool:
    return seen.stale is not False


def _is_well(seen: Seen, runs: Sequence[int]) -> bool:
    if seen.status not in (200, 410) or seen.stale:
        return False
    return not seen.first_page_of_known or (seen.source == "personal" and seen.run in runs)


def _untrue(fault: Fault, seen: Sequence[Seen], began: float, until: float) -> list[str]:
    lies = []
    for each in seen:
        after = f"{each.asked - began:.2f} s after the blow"
        if each.status == HTTPStatus.GONE and each.cursor_of not in fault.pruned:
            lies.append(f"410 for run {each.cursor_of}, which is there, {after}")
        if not each.first_page_of_known:
            continue
        during = each.asked >= began and each.answered <= until
        if fault.meanwhile is not Meanwhile.EMPTY and each.source == "popular" and each.stale is False:
            lies.append(f"popular, and not stale, {after}")
        if fault.meanwhile is not Meanwhile.EITHER and each.source == "personal" and during:
            lies.append(f"personal, though Redis was gone, {after}")
    return lies


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
        lists.fill(client, stage.users)


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
        lists.write(client, 2, stage.users)
        lists.point(client, 2)
    yield


@contextmanager
def _rolled_back(stage: Stage) -> Iterator[None]:
    with stage.store.client() as client:
        lists.point(client, 0)
    yield


@contextmanager
def _pruned(stage: Stage) -> Iterator[None]:
    with stage.store.client() as client:
        lists.prune(client, 2, stage.users)
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
        replaced = time.monotonic()
        # A client asks again once, so none may meet both.
        wait_until(lambda: len(stage.load.since(replaced)) > AWHILE, "clients ask")
    yield
    stage.store.start()


def _replace(stage: Stage, pid: int) -> None:
    """Kill a worker, and wait until another has taken its place."""
    ready = stage.workers_that_became_ready()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: stage.workers_that_became_ready() > ready, "another worker is ready")


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
