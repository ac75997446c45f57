"""RedisGet: reconnects when broken, is not shared over a fork, and never returns a late reply."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis
from redis.exceptions import TimeoutError

from serving.list_store import open_redis
from serving.tuned.redis_get import RedisGet
from tests.support.serving import monitored, settings_for


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    client = open_redis(settings_for(redis_url), 0.3)
    yield client
    client.close()


@pytest.fixture
def redis_get(client: redis.Redis, redis_client: redis.Redis) -> RedisGet:
    redis_client.mset({"a": "1", "b": "2"})
    return RedisGet(client)


def test_one_command_a_key_gets_what_is_stored(redis_get: RedisGet, redis_url: str) -> None:
    assert redis_get.get("a") == b"1"
    with monitored(redis_url) as commands:
        assert [redis_get.get("b"), redis_get.get("none"), redis_get.get("a")] == [b"2", None, b"1"]
        assert commands() == ["GET b", "GET none", "GET a"]


def test_a_connection_that_redis_closed_is_reopened(redis_get: RedisGet, redis_client: redis.Redis) -> None:
    assert redis_get.get("a") == b"1"
    redis_client.client_kill_filter(_type="normal", skipme=True)
    assert redis_get.get("b") == b"2"


def test_a_late_reply_is_not_read_by_the_next_get(redis_get: RedisGet, redis_client: redis.Redis) -> None:
    assert redis_get.get("a") == b"1"
    redis_client.client_pause(1_000)  # ms
    with pytest.raises(TimeoutError):
        redis_get.get("a")
    deadline = time.monotonic() + 20
    while True:
        try:
            found = redis_get.get("b")
            break
        except TimeoutError:
            assert time.monotonic() < deadline
    assert found == b"2"


def test_an_error_reply_keeps_the_connection(
    redis_get: RedisGet, redis_client: redis.Redis, redis_url: str
) -> None:
    redis_client.hset("hash", "field", "value")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        redis_get.get("hash")
    with monitored(redis_url) as commands:
        assert redis_get.get("a") == b"1"
        assert commands() == ["GET a"]


def test_a_forked_process_does_not_use_the_connection_of_its_parent(
    redis_get: RedisGet, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert redis_get.get("a") == b"1"
    monkeypatch.setattr("os.getpid", lambda: -1)  # as in a fork
    before = get_connections(redis_client)
    assert redis_get.get("b") == b"2"
    assert get_connections(redis_client) - before


def get_connections(client: redis.Redis) -> set[str]:
    """Return the ids of the connections whose last command was a GET."""
    return {each["id"] for each in client.client_list() if each["cmd"] == "get"}


def test_gets_do_not_count_towards_max_connections(redis_url: str, redis_client: redis.Redis) -> None:
    redis_client.set("a", "1")
    limited = open_redis(settings_for(f"{redis_url}?max_connections=2"), 0.3)
    redis_get = RedisGet(limited)
    for _ in range(3):
        assert redis_get.get("a") == b"1"
        assert limited.get("a") == b"1"
    limited.close()
