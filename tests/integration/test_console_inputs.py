"""Whatever an address or a form holds, the console refuses it in words and never fails."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode, urlsplit

from werkzeug.test import TestResponse

from contract.keys import Keys
from demo.console_pages import example_pages
from tests.support.console import SAME_ORIGIN, find_table_files, open_console
from tests.support.operators import LiveNetwork

pytest_plugins = ("tests.support.operators_fixtures",)

UNREADABLE = ("%00", "a%00b", "%ff", "%C3%28", "%ED%A0%80")
"""NUL bytes, and bytes that are no UTF-8."""

ODD = (
    "", " ", "nope", "-1", "0", "99999999999999999999", "\u0661", "a'b\"c", "%", "\\", "~", "\n", "é" * 300,
    "2026-01-01", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "infinity",
    "2026-01-01T00:00:00+00:00~x", "0001-01-01T00:00:00+14:00~x", "20260101T000000Z-control",
)  # fmt: skip

OF_USER = {"id": "7", "before": "2021-09-01T00:00:00+00:00", "before_post": "1", "before_action": "like"}
AFTER_POST = {"q": "", "topic": "", "show": "newest", "after": "101", "after_time": "2021-09-01"}
OF_SCORE = {"user": "7", "post": "101", "run": "control", "from": "1"}

PAGES: dict[str, dict[str, str]] = {
    "/users": OF_USER | {"run": "control", "from": "1", "a": "control", "b": "test"},
    "/user-data": {"id": "7"},
    "/why": OF_SCORE,
    "/runs": {"variant": "test", "state": "live", "before": ""},
    "/experiment": {"from": "", "until": "", "min-effect": "", "before": "", "after": ""},
    "/experiment/report": {"from": "", "min-effect": ""},
    "/posts": {"id": ""} | AFTER_POST,
    "/jobs": {"before": ""},
    "/log": {"kind": "run", "before": ""},
    "/data": {"before": "", "run": ""},
    "/search": {"q": "a"},
}
"""Page -> its arguments, all of them right."""

TABLES = {
    "experiment-days": {"from": "", "min-effect": ""},
    "left-out": {"before": ""},
    "log": {"kind": "run", "before": ""},
    "jobs": {"before": ""},
    "pins": {"after": ""},
    "posts": AFTER_POST,
    "runs": {"variant": "test", "state": "live", "before": ""},
    "score-parts": OF_SCORE,
    "split-changes": {"before": ""},
    "user-comparison": {"from": "1"},
    "user-interactions": OF_USER,
    "user-list": {"run": "control", "from": "1"},
}
"""Table -> arguments beside those that its page gives."""

ACTIONS = {
    "block": {"post": "1"},
    "pin": {"user": "7", "variant": "test"},
    "roll-back": {"run": ""},
    "split": {"percent": "10", "name": "a", "salt": "b", "days": "7"},
    "start-night": {"variant": "all"},
    "stop-job": {"job": ""},
    "unblock": {"post": "1"},
    "unpin": {"user": "7"},
}

NEEDS_A_JOB = {"experiment-days", "/experiment/report", "score-parts"}
"""404 until somebody has asked for it."""

RAW = re.compile("psycopg2|invalid input|out of range|Background on this error|Traceback")
"""What a Postgres or a Python would say."""


def test_text_that_no_page_can_hold_is_refused_everywhere(night: LiveNetwork) -> None:
    def is_refused(answer: TestResponse) -> bool:
        return answer.status_code == 400 and "This request cannot be read" in answer.text

    with open_console(night.settings) as client:
        for address in (*example_pages(night.client, Keys()).values(), "/actions/block", "/healthz", "/x"):
            path = address.partition("?")[0]
            for text in UNREADABLE:
                # The client would replace what is not UTF-8.
                raw = {"PATH_INFO": path + unquote_to_bytes(text).decode("latin-1")}
                assert is_refused(client.get("/", environ_overrides=raw)), raw
                assert is_refused(client.get(f"{path}?q={text}")), (path, text)
        for path in ("/actions/block", "/actions/refresh", "/why", "/experiment", "/sign-in", "/x"):
            for text in UNREADABLE:
                form = {"data": f"post=1&reason={text}", "content_type": "application/x-www-form-urlencoded"}
                assert is_refused(client.post(path, headers=SAME_ORIGIN, **form)), (path, text)
        assert client.get("/posts?q=%25ff%2500").status_code == 200


def test_no_argument_of_a_page_or_a_table_makes_it_fail(night: LiveNetwork) -> None:
    with open_console(night.settings) as client:
        client.application.config["PROPAGATE_EXCEPTIONS"] = False
        pages = [client.get(path).text for path in example_pages(night.client, Keys()).values()]
        files = {urlsplit(path) for page in pages for path in find_table_files(page)}
        given = {Path(file.path).stem: dict(parse_qsl(file.query)) for file in files}
        assert set(given) > {"user-list", "user-comparison", "post-similar", "first-fives", "run-gate"}
        asked = PAGES | {
            f"/tables/{name}.json": given.get(name, {}) | TABLES.get(name, {}) for name in given | TABLES
        }
        addresses = [
            f"/{folder}/{quote(value, safe='')}"
            for folder in ("users", "posts", "runs", "jobs", "tables", "actions")
            for value in ODD
        ]
        for path, right in asked.items():
            status = 404 if NEEDS_A_JOB & {path, Path(path).stem} else 200
            assert client.get(path, query_string=right).status_code == status, (path, right)
        for path, right in (asked | {f"/actions/{name}": right for name, right in ACTIONS.items()}).items():
            addresses += [f"{path}?{urlencode(right | {name: value})}" for name in right for value in ODD]
        for address in addresses:
            answer = client.get(address)
            assert answer.status_code < 500, address
            assert not RAW.search(answer.text), address
