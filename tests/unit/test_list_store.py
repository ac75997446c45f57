"""The circuit breaker of ListStore, without a server."""

from __future__ import annotations

from typing import Any, cast

import pytest
import redis

from contract.codec import StoredList
from contract.ids import IdKind
from contract.keys import Keys
from serving.list_store import BREAKER_SECONDS, ListStore, UnavailableError
from serving.metrics import Metrics
from serving.tuned.redis_get import NotConnectedYetError


class FakeRedis:
    """Answers each GET by the function that is set."""

    get: Any


def fail(_: str) -> bytes:
    raise redis.ConnectionError("down")


def reply_late(_: str) -> bytes:
    raise redis.TimeoutError("late")


def wait_in_vain(_: str) -> bytes:
    raise NotConnectedYetError("no connection to Redis is ready yet")


def test_a_request_without_a_connection_yet_leaves_redis_to_the_others() -> None:
    client = FakeRedis()
    store = ListStore(cast(redis.Redis, client), Keys(), Metrics(), tuned=False)
    client.get = wait_in_vain
    with pytest.raises(UnavailableError, match="no connection"):
        store.get("a", IdKind.NUMBER)
    client.get = lambda _: b"[[1,2]]"
    assert store.get("a", IdKind.NUMBER) == StoredList([(1, 2.0)])


def test_one_late_reply_is_no_reason_to_leave_redis_alone_but_two_in_a_row_are() -> None:
    client = FakeRedis()
    store = ListStore(cast(redis.Redis, client), Keys(), Metrics(), tuned=False)
    for _ in range(3):
        client.get = reply_late
        with pytest.raises(UnavailableError, match="late"):
            store.get("a", IdKind.NUMBER)
        client.get = lambda _: b"[[1,2]]"
        assert store.get("a", IdKind.NUMBER) == StoredList([(1, 2.0)])
    client.get = reply_late
    for _ in range(2):
        with pytest.raises(UnavailableError, match="late"):
            store.get("a", IdKind.NUMBER)
    with pytest.raises(UnavailableError, match="a moment ago"):
        store.get("a", IdKind.NUMBER)


def test_while_redis_fails_one_request_a_second_tries_it_and_the_others_do_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("serving.list_store.time.monotonic", lambda: now)
    client = FakeRedis()
    store = ListStore(cast(redis.Redis, client), Keys(), Metrics(), tuned=False)
    client.get = fail
    with pytest.raises(UnavailableError, match="down"):
        store.get("a", IdKind.NUMBER)

    def reply_while_another_asks(_: str) -> bytes:
        with pytest.raises(UnavailableError, match="a moment ago"):
            store.get("b", IdKind.NUMBER)
        return b"[[1,2]]"

    client.get = reply_while_another_asks
    with pytest.raises(UnavailableError, match="a moment ago"):
        store.get("a", IdKind.NUMBER)
    now += BREAKER_SECONDS
    assert store.get("a", IdKind.NUMBER) == StoredList([(1, 2.0)])
    client.get = lambda _: None
    assert store.get("b", IdKind.NUMBER) is None  # the breaker is closed again
