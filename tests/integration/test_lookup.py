"""GETs over connections of their own: made anew when broken, not shared over a fork, never a step behind."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis
from redis.exceptions import TimeoutError

from serving.list_store import open_redis
from serving.redis_get import Lookup
from tests.support.serving import monitored, settings_for


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    client = open_redis(settings_for(redis_url), 0.3)
    yield client
    client.close()


@pytest.fixture
def lookup(client: redis.Redis, redis_client: redis.Redis) -> Lookup:
    redis_client.mset({"a": "1", "b": "2"})
    return Lookup(client)


def test_what_is_stored_is_got_by_one_command_a_key(lookup: Lookup, redis_url: str) -> None:
    assert lookup.get("a") == b"1"
    with monitored(redis_url) as commands:
        assert [lookup.get("b"), lookup.get("none"), lookup.get("a")] == [b"2", None, b"1"]
        assert commands() == ["GET b", "GET none", "GET a"]


def test_a_connection_that_redis_closed_is_made_anew(lookup: Lookup, redis_client: redis.Redis) -> None:
    assert lookup.get("a") == b"1"
    redis_client.client_kill_filter(_type="normal", skipme=True)
    assert lookup.get("b") == b"2"


def test_a_reply_that_came_too_late_answers_nobody(lookup: Lookup, redis_client: redis.Redis) -> None:
    assert lookup.get("a") == b"1"
    redis_client.client_pause(1_000)  # ms
    with pytest.raises(TimeoutError):
        lookup.get("a")
    deadline = time.monotonic() + 20
    while True:
        try:
            found = lookup.get("b")
            break
        except TimeoutError:
            assert time.monotonic() < deadline
    assert found == b"2"


def test_an_error_reply_leaves_the_connection_in_use(
    lookup: Lookup, redis_client: redis.Redis, redis_url: str
) -> None:
    redis_client.hset("hash", "field", "value")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        lookup.get("hash")
    with monitored(redis_url) as commands:
        assert lookup.get("a") == b"1"
        assert commands() == ["GET a"]


def test_a_forked_process_leaves_its_parents_connection_alone(
    lookup: Lookup, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lookup.get("a") == b"1"
    monkeypatch.setattr("os.getpid", lambda: -1)  # as in a fork
    assert lookup.get("b") == b"2"
    ours = lookup._idle
    assert [connection.pid for connection in ours] == [-1]


def test_a_limit_on_connections_is_not_used_up_by_lookups(redis_url: str, redis_client: redis.Redis) -> None:
    redis_client.set("a", "1")
    limited = open_redis(settings_for(f"{redis_url}?max_connections=2"), 0.3)
    lookup = Lookup(limited)
    for _ in range(3):
        assert lookup.get("a") == b"1"
        assert limited.get("a") == b"1"
    limited.close()
