"""Serving under steady load while Redis, or a worker, fails: a real gunicorn, and Redis servers of its own.

The faults are those that `make bench-faults` measures, shorter. What must hold
is told in benchmarks/fire; here no time is, so a busy machine fails nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.fire.faults import (
    DIRECT,
    EMPTIED,
    WITHOUT_REDIS,
    WORKER_KILLED,
    Befallen,
    Fault,
    befall,
    wired,
)  # fmt: skip
from benchmarks.fire.report import COLUMNS, row_of, wrongs
from benchmarks.fire.stage import stage
from benchmarks.report import print_head, print_row

USERS, CLIENTS, REQUESTS_PER_SECOND = 100, 6, 60
LASTS_SECONDS, CALM_SECONDS = 0.8, 0.6
SETTINGS = {
    # So patient that a busy machine does not look like a dead Redis.
    "OVERNIGHT_REDIS_TIMEOUT_MS": "400",
    "OVERNIGHT_STATE_REFRESH_SECONDS": "0.2",
}
SLOW_SECONDS, TOO_SLOW_SECONDS = 0.02, 0.8
THROUGH_WIRE = wired(SLOW_SECONDS, TOO_SLOW_SECONDS)

Happened = tuple[dict[str, Befallen], str]


def _befall(faults: Sequence[Fault], has_wire: bool) -> tuple[list[Befallen], str]:
    """Let faults befall a stage one after the other; return what happened, and what serving said."""
    with stage(
        wired=has_wire, users=USERS, clients=CLIENTS, requests_per_second=REQUESTS_PER_SECOND, **SETTINGS
    ) as servers:
        befallen = [befall(servers, fault, LASTS_SECONDS, CALM_SECONDS) for fault in faults]
        return befallen, servers.log.read_text()


@pytest.fixture(scope="module")
def happened() -> Happened:
    """What happened under each fault, by its name, and all that serving said; two stages side by side."""
    with ThreadPoolExecutor() as pool:
        sides = list(pool.map(_befall, (DIRECT, THROUGH_WIRE), (False, True)))
    befallen = [each for side, _ in sides for each in side]
    print_head(COLUMNS)
    for each in befallen:
        print_row(COLUMNS, row_of(each))
    return {each.fault.name: each for each in befallen}, "".join(log for _, log in sides)


@pytest.mark.parametrize("name", [fault.name for fault in (*DIRECT, *THROUGH_WIRE)])
def test_every_answer_under_a_fault_is_whole_and_true_and_lists_come_back(
    happened: Happened, name: str
) -> None:
    """That lists came back was waited for; they would not have passed otherwise."""
    befallen = happened[0][name]
    assert wrongs(befallen) == []
    assert row_of(befallen)["not_200"] == 0
    assert {seen.source for seen in befallen.seen} >= {"personal", "popular"}


def test_only_requests_under_way_on_a_killed_worker_had_to_be_asked_again(happened: Happened) -> None:
    for name, befallen in happened[0].items():
        assert name in (WORKER_KILLED.name, WITHOUT_REDIS.name) or not any(
            seen.retries for seen in befallen.seen
        ), name


def test_cursors_of_a_pruned_run_are_refused_and_no_others(happened: Happened) -> None:
    refused = {name for name, befallen in happened[0].items() if row_of(befallen)["gone_410"]}
    assert refused <= {fault.name for fault in DIRECT if fault.pruned}


def test_an_emptied_redis_is_told_from_users_without_lists(happened: Happened) -> None:
    assert any(seen.stale for seen in happened[0][EMPTIED.name].seen)


def test_a_worker_that_starts_without_redis_serves_what_another_had_loaded(happened: Happened) -> None:
    _, log = happened
    assert log.count("as another worker saved it") == 2
    assert "Traceback" not in log
