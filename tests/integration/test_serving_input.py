"""Bad input: a problem that names the parameter, and never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch
from urllib.parse import quote

import pytest
import redis
from flask import Flask

from serving.list_store import ListStore
from tests.support.serving import ask, publish, recommend, serving, settings_for

NOT_IDS = {
    "text": "abc",
    "negative": "-1",
    "signed": "+1",
    "float": "4.2",
    "exponent": "1e3",
    "too large": str(2**63),
    "huge": "9" * 400,
    "10 kB": "1" * 10_000,
    "long zeros": "0" * 30 + "42",
    "space": " 42",
    "underscore": "4_2",
    "arabic digits": "٤٢",
    "full-width digits": "\uff14\uff12",
    "superscript": "²",
    "nul": "42\0",
    "newline": "42\n",
    "sql": "42;DROP TABLE x",
    "key": "42:popular",
    "bytes": "\udcff",
}
NOT_LIMITS = NOT_IDS | {"zero": "0", "over the longest list": "13", "empty": ""}
NOT_TIMES = {
    "long": "2021-12-29T21:00:00" + "0" * 10_000,
    "nul": "2021-12-29T21:00:00\0",
    "line break": "2021-12-29T21:00:00\n",
}
NOT_CURSORS = {
    "empty": "",
    "text": "abc",
    "padding": "====",
    "nul": "\0",
    "unicode": "é" * 20,
    "10 kB": "A" * 10_000,
    "json": '{"run_id":"x"}',
}


@pytest.fixture(scope="module")
def app(valkey_server: str) -> Iterator[Flask]:
    """The app over one published run; nothing here changes it."""
    url = f"{valkey_server}/1"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        publish(client)
        with serving(settings_for(url)) as app:
            recommend(app, 42)
            yield app


def _percent(text: str) -> str:
    return quote(text.encode(errors="surrogateescape"), safe="")


def _assert_problem(app: Flask, path: str, parameter: str) -> None:
    response = app.test_client().get(path)
    assert (response.status_code, response.content_type) == (400, "application/problem+json"), response.text
    body = response.get_json(force=True)
    assert (body["status"], body["parameter"]) == (400, parameter)
    assert parameter in body["detail"]
    assert len(response.text) < 500


@pytest.mark.parametrize("text", NOT_IDS.values(), ids=NOT_IDS)
def test_a_user_id_that_is_not_one_is_refused(app: Flask, text: str) -> None:
    _assert_problem(app, f"/users/{_percent(text)}/recommendations", "user_id")
    _assert_problem(app, f"/post/recommendations/?id={_percent(text)}", "id")


@pytest.mark.parametrize("text", NOT_LIMITS.values(), ids=NOT_LIMITS)
@pytest.mark.parametrize(
    "path", ["/users/42/recommendations?", "/posts/popular?", "/post/recommendations/?id=42&"]
)
def test_a_limit_that_is_not_one_is_refused(app: Flask, path: str, text: str) -> None:
    _assert_problem(app, f"{path}limit={_percent(text)}", "limit")


@pytest.mark.parametrize("text", NOT_TIMES.values(), ids=NOT_TIMES)
def test_a_time_that_is_not_one_is_refused(app: Flask, text: str) -> None:
    _assert_problem(app, f"/post/recommendations/?id=42&time={_percent(text)}", "time")


@pytest.mark.parametrize("text", NOT_CURSORS.values(), ids=NOT_CURSORS)
def test_a_cursor_that_is_not_one_is_refused(app: Flask, text: str) -> None:
    _assert_problem(app, f"/users/42/recommendations?cursor={_percent(text)}", "cursor")


def test_a_cursor_of_another_user_is_refused(app: Flask) -> None:
    cursor = recommend(app, 42)["next_cursor"]
    _assert_problem(app, f"/users/41/recommendations?cursor={cursor}", "cursor")


def test_a_missing_id_is_refused(app: Flask) -> None:
    _assert_problem(app, "/post/recommendations/?time=2021-12-29T21:00:00", "id")


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        ("/users/42/recommendations?limit=5&limit=5", "limit"),
        ("/users/42/recommendations?cursor=a&cursor=a", "cursor"),
        ("/posts/popular?limit=1&limit=2", "limit"),
        ("/post/recommendations/?id=42&id=43", "id"),
        ("/post/recommendations/?id=42&time=2021-12-29&time=2021-12-29", "time"),
    ],
)
def test_a_repeated_parameter_is_refused(app: Flask, path: str, parameter: str) -> None:
    _assert_problem(app, path, parameter)


@pytest.mark.parametrize(
    "query",
    [
        "2021-12-29T21:00:00", "2021-12-29%2021:00:00.123456", "2021-12-29T21:00:00Z",
        "2021-12-29T21:00:00%2B03:00", "2021-12-29T21:00:00+03:00", "1640811600", "1640811600.5", "yesterday",
        "Wed,%2029%20Dec%202021%2021:00:00%20GMT", "2021-13-01", _percent("٢٠٢١-12-29 é"), "",
    ],
)  # fmt: skip
def test_a_time_of_any_format_is_taken(app: Flask, query: str) -> None:
    """It is not used; `+` is a blank in a query."""
    assert len(ask(app, f"/post/recommendations/?id=42&time={query}")["recommendations"]) == 5


@pytest.mark.parametrize("user_id", ["0", "9223372036854775807", "0042"])
def test_every_id_from_0_to_the_largest_is_taken(app: Flask, user_id: str) -> None:
    assert ask(app, f"/users/{user_id}/recommendations")["user_id"] == int(user_id)


@pytest.mark.parametrize(
    "path", ["/", "/users", "/users//recommendations", "/users/42", "/users/42/recommendations/", "/%00"]
)
def test_an_unknown_route_is_a_404_problem(app: Flask, path: str) -> None:
    response = app.test_client().get(path)
    assert (response.status_code, response.content_type) == (404, "application/problem+json")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_a_wrong_method_is_a_405_problem_that_says_what_is_allowed(app: Flask, method: str) -> None:
    response = app.test_client().open("/users/42/recommendations", method=method)
    assert (response.status_code, response.content_type) == (405, "application/problem+json")
    assert "GET" in response.headers["Allow"]


@pytest.mark.parametrize("testing", [False, True])
def test_an_error_of_our_own_is_a_500_problem_without_its_traceback(app: Flask, testing: bool) -> None:
    app.testing = testing
    with patch.object(ListStore, "get", side_effect=RuntimeError("secret detail")):
        response = app.test_client().get("/users/42/recommendations")
    assert (response.status_code, response.content_type) == (500, "application/problem+json")
    assert "secret" not in response.text
    assert "Traceback" not in response.text
