"""Serving under steady load while Redis, or a worker, fails: a real gunicorn, and Redis servers of its own.

The faults are those of `make bench-faults`, for a shorter time. What must hold
is stated in benchmarks/faults; no time is checked here, so that a busy machine
fails no test.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from benchmarks.faults.environment import Environment, run_environment
from benchmarks.faults.faults import (
    DIRECT_FAULTS,
    REDIS_EMPTIED,
    WITHOUT_REDIS,
    WORKER_KILLED,
    proxied_faults,
)
from benchmarks.faults.report import COLUMNS, list_errors, make_row
from benchmarks.faults.run_fault import Fault, FaultResult, run_fault
from benchmarks.report import print_head, print_row
from tests.support.gunicorn import Reply, get

USERS, CLIENTS, REQUESTS_PER_SECOND = 100, 6, 60
FAULT_SECONDS, NORMAL_SECONDS = 0.8, 0.6
SETTINGS = {
    # A long timeout, so that a busy machine does not look like a dead Redis.
    "OVERNIGHT_REDIS_TIMEOUT_MS": "400",
    "OVERNIGHT_STATE_REFRESH_SECONDS": "0.2",
}
SLOW_SECONDS, TOO_SLOW_SECONDS = 0.02, 0.8
PROXIED_FAULTS = proxied_faults(SLOW_SECONDS, TOO_SLOW_SECONDS)

REFUSED = {
    414: b"GET /" + b"a" * 17_000 + b" HTTP/1.1\r\n\r\n",
    431: b"GET / HTTP/1.1\r\nX-Long: " + b"a" * 9000 + b"\r\n\r\n",
    400: b"no HTTP\r\n\r\n",
}
STUCK_CLIENTS = 32


@dataclass(frozen=True)
class Results:
    """The result of each fault in one environment, by its name, and the log of serving."""

    by_fault: dict[str, FaultResult]
    log: str


def _run_faults(environment: Environment, faults: Sequence[Fault]) -> Results:
    by_fault = {fault.name: run_fault(environment, fault, FAULT_SECONDS, NORMAL_SECONDS) for fault in faults}
    return Results(by_fault, environment.log.read_text())


@contextmanager
def _environment(*, with_proxy: bool) -> Iterator[Environment]:
    with run_environment(
        with_proxy=with_proxy,
        users=USERS,
        clients=CLIENTS,
        requests_per_second=REQUESTS_PER_SECOND,
        **SETTINGS,
    ) as environment:
        yield environment


def _run_direct_faults() -> Results:
    with _environment(with_proxy=False) as environment:
        return _run_faults(environment, DIRECT_FAULTS)


@dataclass(frozen=True)
class ProxiedResults(Results):
    """Also the answers to a client beside stuck clients, and to requests that gunicorn refuses, by status."""

    beside_stuck_clients: list[Reply]
    refusals: dict[int, Reply]


def _run_proxied_faults() -> ProxiedResults:
    with _environment(with_proxy=True) as environment:
        results = _run_faults(environment, PROXIED_FAULTS)
        refusals = {status: _send_raw(environment.port, request) for status, request in REFUSED.items()}
        beside_stuck_clients = _get_beside_stuck_clients(environment.port)
        return ProxiedResults(results.by_fault, results.log, beside_stuck_clients, refusals)


def _get_beside_stuck_clients(port: int) -> list[Reply]:
    """Send a request while many clients have sent nothing, and while many have sent half a request."""
    replies = []
    for sent in (b"", b"GET /healthz HT"):
        with ExitStack() as stack:
            for _ in range(STUCK_CLIENTS):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                client.sendall(sent)
            replies.append(get(port, "/healthz"))
    return replies


def _send_raw(port: int, request: bytes) -> Reply:
    """Send exactly these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(request)
        response = http.client.HTTPResponse(client)
        response.begin()
        return Reply(response.status, dict(response.getheaders()), response.read())


@pytest.fixture(scope="module")
def results() -> ProxiedResults:
    """The results of all faults; both environments run at the same time."""
    with ThreadPoolExecutor() as pool:
        direct_future, proxied_future = pool.submit(_run_direct_faults), pool.submit(_run_proxied_faults)
        direct, proxied = direct_future.result(), proxied_future.result()
    print_head(COLUMNS)
    by_fault = direct.by_fault | proxied.by_fault
    for result in by_fault.values():
        print_row(COLUMNS, make_row(result))
    return ProxiedResults(by_fault, direct.log + proxied.log, proxied.beside_stuck_clients, proxied.refusals)


@pytest.mark.parametrize("name", [fault.name for fault in (*DIRECT_FAULTS, *PROXIED_FAULTS)])
def test_every_answer_under_a_fault_is_complete_and_true_and_lists_come_back(
    results: ProxiedResults, name: str
) -> None:
    """The fixture waits until lists are back, and fails otherwise."""
    result = results.by_fault[name]
    assert list_errors(result) == []
    assert make_row(result)["not_200"] == 0


def test_users_with_and_without_lists_were_requested(results: ProxiedResults) -> None:
    """Over all faults, because a slow machine answers few requests during a short one."""
    sources = {each.source for result in results.by_fault.values() for each in result.exchanges}
    assert sources >= {"personal", "popular"}


def test_only_requests_in_progress_on_a_killed_worker_were_retried(results: ProxiedResults) -> None:
    for name, result in results.by_fault.items():
        assert name in (WORKER_KILLED.name, WITHOUT_REDIS.name) or not any(
            each.retries for each in result.exchanges
        ), name


def test_only_cursors_of_a_pruned_run_are_refused(results: ProxiedResults) -> None:
    refused = {name for name, result in results.by_fault.items() if make_row(result)["gone_410"]}
    assert refused <= {fault.name for fault in DIRECT_FAULTS if fault.pruned}


def test_an_emptied_redis_is_distinguished_from_users_without_lists(results: ProxiedResults) -> None:
    assert any(each.stale for each in results.by_fault[REDIS_EMPTIED.name].exchanges)


def test_a_worker_that_starts_without_redis_serves_what_another_had_loaded(results: ProxiedResults) -> None:
    assert results.log.count("from the state that another worker saved") == 2
    assert "Traceback" not in results.log


def test_clients_that_send_nothing_or_half_a_request_block_no_other_client(results: ProxiedResults) -> None:
    assert [reply.status for reply in results.beside_stuck_clients] == [200, 200]


def test_what_gunicorn_itself_refuses_is_answered_with_a_problem(results: ProxiedResults) -> None:
    for status, reply in results.refusals.items():
        assert (reply.status, reply.headers["Content-Type"]) == (status, "application/problem+json")
        assert reply.json["status"] == status
