"""Serving under steady load while Redis, or a worker, fails: a real gunicorn, and Redis servers of its own.

The faults are those that `make bench-faults` measures, shorter. What must hold
is told in benchmarks/fire; here no time is, so a busy machine fails nothing.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from benchmarks.faults.environment import Stage, stage
from benchmarks.faults.faults import DIRECT, EMPTIED, WITHOUT_REDIS, WORKER_KILLED, wired
from benchmarks.faults.report import COLUMNS, row_of, wrongs
from benchmarks.faults.run_fault import Befallen, Fault, befall
from benchmarks.report import print_head, print_row
from tests.support.gunicorn import Reply, get

USERS, CLIENTS, REQUESTS_PER_SECOND = 100, 6, 60
LASTS_SECONDS, CALM_SECONDS = 0.8, 0.6
SETTINGS = {
    # So patient that a busy machine does not look like a dead Redis.
    "OVERNIGHT_REDIS_TIMEOUT_MS": "400",
    "OVERNIGHT_STATE_REFRESH_SECONDS": "0.2",
}
SLOW_SECONDS, TOO_SLOW_SECONDS = 0.02, 0.8
THROUGH_WIRE = wired(SLOW_SECONDS, TOO_SLOW_SECONDS)

REFUSED = {
    414: b"GET /" + b"a" * 17_000 + b" HTTP/1.1\r\n\r\n",
    431: b"GET / HTTP/1.1\r\nX-Long: " + b"a" * 9000 + b"\r\n\r\n",
    400: b"no HTTP\r\n\r\n",
}
STUCK_CLIENTS = 32


@dataclass(frozen=True)
class Side:
    """What happened on one stage: under each fault, by its name, and what serving said."""

    befallen: dict[str, Befallen]
    log: str


def _befall(servers: Stage, faults: Sequence[Fault]) -> Side:
    befallen = {fault.name: befall(servers, fault, LASTS_SECONDS, CALM_SECONDS) for fault in faults}
    return Side(befallen, servers.log.read_text())


@contextmanager
def _stage(*, has_wire: bool) -> Iterator[Stage]:
    with stage(
        wired=has_wire, users=USERS, clients=CLIENTS, requests_per_second=REQUESTS_PER_SECOND, **SETTINGS
    ) as servers:
        yield servers


def _direct() -> Side:
    with _stage(has_wire=False) as servers:
        return _befall(servers, DIRECT)


def _through_wire() -> tuple[Side, list[Reply], dict[int, Reply]]:
    """Return besides how a client was answered beside stuck ones, and how what is refused is."""
    with _stage(has_wire=True) as servers:
        side = _befall(servers, THROUGH_WIRE)
        refusals = {status: _say(servers.port, words) for status, words in REFUSED.items()}
        return side, _ask_beside_stuck_clients(servers.port), refusals


def _ask_beside_stuck_clients(port: int) -> list[Reply]:
    """Ask while many clients have said nothing, and while as many have said half of something."""
    replies = []
    for words in (b"", b"GET /healthz HT"):
        with ExitStack() as stack:
            for _ in range(STUCK_CLIENTS):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                client.sendall(words)
            replies.append(get(port, "/healthz"))
    return replies


def _say(port: int, words: bytes) -> Reply:
    """Send these very words."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(words)
        response = http.client.HTTPResponse(client)
        response.begin()
        return Reply(response.status, dict(response.getheaders()), response.read())


@dataclass(frozen=True)
class Happened(Side):
    """What happened on both stages, and to clients that behave otherwise."""

    beside_stuck_clients: list[Reply]
    refusals: dict[int, Reply]


@pytest.fixture(scope="module")
def happened() -> Happened:
    """Two stages side by side."""
    with ThreadPoolExecutor() as pool:
        direct, wired_one = pool.submit(_direct), pool.submit(_through_wire)
        one, (other, beside_stuck_clients, refusals) = direct.result(), wired_one.result()
    print_head(COLUMNS)
    befallen = one.befallen | other.befallen
    for each in befallen.values():
        print_row(COLUMNS, row_of(each))
    return Happened(befallen, one.log + other.log, beside_stuck_clients, refusals)


@pytest.mark.parametrize("name", [fault.name for fault in (*DIRECT, *THROUGH_WIRE)])
def test_every_answer_under_a_fault_is_whole_and_true_and_lists_come_back(
    happened: Happened, name: str
) -> None:
    """That lists came back was waited for; they would not have passed otherwise."""
    befallen = happened.befallen[name]
    assert wrongs(befallen) == []
    assert row_of(befallen)["not_200"] == 0


def test_users_with_lists_and_without_were_asked_for(happened: Happened) -> None:
    """Over all faults: a slow machine answers few requests while a short one lasts."""
    sources = {seen.source for befallen in happened.befallen.values() for seen in befallen.seen}
    assert sources >= {"personal", "popular"}


def test_only_requests_under_way_on_a_killed_worker_had_to_be_asked_again(happened: Happened) -> None:
    for name, befallen in happened.befallen.items():
        assert name in (WORKER_KILLED.name, WITHOUT_REDIS.name) or not any(
            seen.retries for seen in befallen.seen
        ), name


def test_cursors_of_a_pruned_run_are_refused_and_no_others(happened: Happened) -> None:
    refused = {name for name, befallen in happened.befallen.items() if row_of(befallen)["gone_410"]}
    assert refused <= {fault.name for fault in DIRECT if fault.pruned}


def test_an_emptied_redis_is_told_from_users_without_lists(happened: Happened) -> None:
    assert any(seen.stale for seen in happened.befallen[EMPTIED.name].seen)


def test_a_worker_that_starts_without_redis_serves_what_another_had_loaded(happened: Happened) -> None:
    assert happened.log.count("as another worker saved it") == 2
    assert "Traceback" not in happened.log


def test_clients_that_say_nothing_or_half_of_something_keep_nobody_from_an_answer(happened: Happened) -> None:
    assert [reply.status for reply in happened.beside_stuck_clients] == [200, 200]


def test_what_gunicorn_itself_refuses_is_told_as_a_problem(happened: Happened) -> None:
    for status, reply in happened.refusals.items():
        assert (reply.status, reply.headers["Content-Type"]) == (status, "application/problem+json")
        assert reply.json["status"] == status
