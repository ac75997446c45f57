"""Requests get the same answers with and without the tuned parts."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest
import redis
from flask import Flask
from werkzeug.test import Client, EnvironBuilder, TestResponse

from contract.settings import Settings
from serving.tuned.fast_path import FastPath
from tests.support.serving import KEYS, TEST_RUN, publish, serving, settings_for

PLAIN = [
    "/users/42/recommendations", "/users/43/recommendations", "/users/42/recommendations?limit=1",
    "/users/42/recommendations?limit=12&odd=1", "/users/0042/recommendations", "/users/44/recommendations",
    "/post/recommendations/?id=42", "/post/recommendations?id=43&limit=3",
    "/post/recommendations/?id=42&time=2021-12-29T21:00:00&limit=5",
    "/post/recommendations/?id=42&time=2021-12-29T21:00:00+03:00", "/post/recommendations/?id=42&time=now",
]  # fmt: skip
WRONG = [
    "/users/9999999999999999999/recommendations", "/users/42/recommendations?limit=0",
    "/users/42/recommendations?limit=1&limit=2", "/post/recommendations/", "/post/recommendations/?id=x",
    "/post/recommendations/?id=42&time=1&time=2", "/post/recommendations/?id=4+2",
    "/users/42/recommendations?limit=",
]  # fmt: skip
NOT_PLAIN = [
    "/users/%34%32/recommendations", "/users/42/recommendations?limit=%35", "/posts/popular",
    "/users/42/recommendations?cursor=x", "/users/x/recommendations", "/posts/101/similar", "/healthz",
]  # fmt: skip


@pytest.fixture
def app(redis_url: str, redis_client: redis.Redis) -> Iterator[Flask]:
    """Serving with two runs, a blocked post and texts."""
    publish(redis_client)
    publish(redis_client, TEST_RUN, {44: [(9, 1.5), (8, 1.25)]}, recipe="ranked")
    redis_client.set(KEYS.experiment, '{"name": "n", "salt": "s", "percent_test": 50}')
    redis_client.hset(KEYS.posts, mapping={str(post): f'{{"text": "é{post}"}}' for post in range(1, 13)})
    redis_client.sadd(KEYS.blocked, 2)
    with serving(settings_for(redis_url)) as app:
        yield app


def get(wsgi: Any, path: str, method: str = "GET", **headers: str) -> TestResponse:
    """Request a path of a WSGI app."""
    answer = Client(wsgi).open(path, method=method, headers={"X-Request-ID": "one", **headers})
    assert isinstance(answer, TestResponse)
    return answer


def counter_lines(app: Flask, name: str) -> list[str]:
    return [line for line in get(app.wsgi_app, "/metrics").text.splitlines() if line.startswith(name)]


@pytest.mark.parametrize("path", [*PLAIN, *WRONG, *NOT_PLAIN])
def test_the_answer_is_the_same_without_the_tuned_parts(app: Flask, redis_url: str, path: str) -> None:
    with serving(settings_for(redis_url), tuned=False) as core:
        assert not isinstance(core.wsgi_app, FastPath)
        with_tuned, without = get(app.wsgi_app, path), get(core.wsgi_app, path)
    assert with_tuned.status_code == without.status_code
    assert list(with_tuned.headers) == list(without.headers)
    assert without_age(with_tuned) == without_age(without)


def without_age(answer: TestResponse) -> Any:
    """Return a body without the age of the run, which differs between two answers."""
    found = answer.get_json()
    return found if "age_seconds" not in found else found | {"age_seconds": None}


@pytest.mark.parametrize("path", PLAIN)
def test_a_plain_request_does_not_reach_flask_and_is_counted(
    app: Flask, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(app.wsgi_app, "fallback", refuse)
        assert get(app.wsgi_app, path).status_code == HTTPStatus.OK
    (line,) = counter_lines(app, "overnight_requests_total{")
    assert line.endswith("} 1.0")
    assert 'status="200"' in line


def refuse(*_: Any) -> Any:
    raise AssertionError("Flask was called")


def test_what_the_fast_path_cannot_answer_is_logged_counted_and_answered_by_flask(
    app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("broken")

    with monkeypatch.context() as patched:
        patched.setattr("serving.tuned.fast_path.get_recommendations", fail)
        assert get(app.wsgi_app, PLAIN[0]).status_code == HTTPStatus.OK
    assert counter_lines(app, "overnight_fast_path_errors_total") == ["overnight_fast_path_errors_total 1.0"]
    (record,) = [record for record in caplog.records if record.name == "serving.tuned.fast_path"]
    assert record.exc_info is not None


@pytest.mark.parametrize("path", WRONG)
def test_an_invalid_request_is_no_error_of_the_fast_path(
    app: Flask, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    get(app.wsgi_app, path)
    assert counter_lines(app, "overnight_fast_path_errors_total") == ["overnight_fast_path_errors_total 0.0"]
    assert caplog.records == []


@pytest.mark.parametrize("path", WRONG)
def test_an_invalid_request_gets_a_problem(app: Flask, path: str) -> None:
    answer = get(app.wsgi_app, path)
    assert (answer.status_code, answer.mimetype) == (HTTPStatus.BAD_REQUEST, "application/problem+json")


@pytest.mark.parametrize(
    ("method", "body", "status"),
    [
        ("HEAD", b"", HTTPStatus.OK),
        ("POST", b"", HTTPStatus.METHOD_NOT_ALLOWED),
        ("GET", b"x" * 2000, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    ],
)
def test_a_request_of_another_kind_reaches_flask(
    app: Flask, method: str, body: bytes, status: HTTPStatus
) -> None:
    assert Client(app.wsgi_app).open(PLAIN[0], method=method, data=body).status_code == status


def test_tokens_and_the_metrics_port_hold_on_the_fast_path(redis_url: str, redis_client: redis.Redis) -> None:
    publish(redis_client)
    settings: Settings = settings_for(redis_url, api_tokens="right", metrics_port=9000)
    with serving(settings) as app:
        assert get(app.wsgi_app, PLAIN[0]).status_code == HTTPStatus.UNAUTHORIZED
        wrong = get(app.wsgi_app, PLAIN[0], Authorization="Bearer wrong")
        assert wrong.status_code == HTTPStatus.UNAUTHORIZED
        right = {"Authorization": "Bearer right"}
        assert get(app.wsgi_app, PLAIN[0], **right).status_code == HTTPStatus.OK
        other_port = EnvironBuilder(PLAIN[0], base_url="http://localhost:9000", headers=right).get_environ()
        assert Client(app.wsgi_app).open(other_port).status_code == HTTPStatus.NOT_FOUND


def test_with_the_access_log_flask_answers_everything(redis_url: str) -> None:
    with serving(settings_for(redis_url, access_log=True)) as app:
        assert not isinstance(app.wsgi_app, FastPath)


def test_without_a_run_flask_answers_with_a_problem(redis_url: str) -> None:
    with serving(settings_for(redis_url)) as app:
        assert get(app.wsgi_app, PLAIN[0]).status_code == HTTPStatus.SERVICE_UNAVAILABLE
