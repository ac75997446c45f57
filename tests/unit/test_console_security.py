"""Who may look at the console and who may change anything: addresses, origins, sign-in, headers, errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Semaphore
from typing import Any
from unittest.mock import patch

import pytest
from click.testing import CliRunner
from flask import abort
from flask.testing import FlaskClient

from console.__main__ import cli
from console.security import CSP
from console.sign_in import (
    MAX_HASHING,
    MAX_TRIES,
    MAX_TRIES_OF_ADDRESS,
    TRIES_SECONDS,
    local_target,
    make_user,
)
from contract.errors import SettingsError, StoreError
from contract.settings import Settings
from tests.support.console import SAME_ORIGIN, open_console

PASSWORD = "correct horse"
ANNA, VERA = make_user("anna", "operator", PASSWORD), make_user("vera", "viewer", PASSWORD)
USERS = {"console_users": f"{ANNA} {VERA}", "local_operator": "", "console_secret": "a secret of the tests"}
PAGE = "/sign-in"


@contextmanager
def console(**values: Any) -> Iterator[FlaskClient]:
    """Lend a client of a console whose stores nobody asks."""
    with open_console(Settings.of(), **values) as client:
        yield client


def sign_in(client: FlaskClient, name: str = "anna", password: str = PASSWORD, **values: Any) -> Any:
    data = {"name": name, "password": password, "next": values.pop("next", "")}
    return client.post(PAGE, data=data, headers=SAME_ORIGIN | values.pop("headers", {}), **values)


@contextmanager
def changed_session(client: FlaskClient, **console_settings: Any) -> Iterator[FlaskClient]:
    """Lend a client of a console with other settings, which sends the cookie of the first one."""
    cookie = client.get_cookie("overnight_console_8002")
    assert cookie is not None
    with console(**USERS | console_settings) as other:
        other.set_cookie(cookie.key, cookie.value)
        yield other


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"console_host": "0.0.0.0", "local_operator": ""}, "set OVERNIGHT_CONSOLE_USERS"),
        ({"console_host": "console.example", "local_operator": ""}, "set OVERNIGHT_CONSOLE_USERS"),
        ({"console_host": "0.0.0.0"}, "LOCAL_OPERATOR makes everybody an operator"),
        ({"console_users": ANNA}, "LOCAL_OPERATOR makes everybody an operator"),
        ({"trust_proxy": True, "local_operator": ""}, "must sign in"),
    ],
)
def test_settings_that_show_the_console_to_strangers_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message), console(**settings):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "a.localhost"])
def test_a_loopback_console_needs_no_users(host: str) -> None:
    with console(console_host=host) as client:
        assert client.get("/healthz").status_code == 200


def test_without_users_other_names_of_the_host_are_refused() -> None:
    with console() as client:
        for host, status in {
            "localhost:8002": 200, "127.0.0.1": 200, "[::1]:8002": 200, "evil.example": 400,
            "localhost.evil.example": 400, "127.0.0.1.evil.example": 400, "10.0.0.1:8002": 400, "": 400,
        }.items():  # fmt: skip
            assert client.get("/search", headers={"Host": host}).status_code == status, host


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"}, False),
        ({"Origin": "http://localhost"}, True),
        ({"Origin": "http://localhost:81"}, False),
        ({"Origin": "https://localhost"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({}, False),
    ],
)
def test_only_the_consoles_own_pages_change_anything(headers: dict[str, str], allowed: bool) -> None:
    with console(**USERS) as client:
        for method in ("post", "put", "delete"):
            status = getattr(client, method)("/sign-out", headers=headers).status_code
            assert (status != 403) == allowed, (method, status)
        answer = client.post(PAGE, data={"name": "anna", "password": PASSWORD}, headers=headers)
        assert (answer.status_code == 303) == allowed
        assert ("Set-Cookie" in answer.headers) == allowed


def test_origin_is_compared_with_what_a_trusted_proxy_says() -> None:
    forwarded = {
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "example.org",
        "X-Forwarded-For": "9.9.9.9",
    }
    for trusted in (True, False):
        with console(**USERS, trust_proxy=trusted) as client:
            answer = client.post(PAGE, data={}, headers=forwarded | {"Origin": "https://example.org"})
            assert (answer.status_code == 403 and b"another site" in answer.data) != trusted
            signed_in = sign_in(client, headers=forwarded)
            assert ("Secure" in signed_in.headers["Set-Cookie"]) == trusted


def test_every_answer_has_the_headers() -> None:
    with console(**USERS) as client:
        for path in (PAGE, "/healthz", "/static/app.css", "/runs", "/nothing"):
            answer = client.get(path, buffered=True)
            assert answer.headers["Content-Security-Policy"] == CSP
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Referrer-Policy"] == "same-origin"
            caching = "max-age=31536000" if path.startswith("/static") else "no-store"
            assert caching in answer.headers["Cache-Control"]
    assert "unsafe" not in CSP


def test_without_a_session_every_page_asks_to_sign_in() -> None:
    with console(**USERS) as client:
        rules = [rule for rule in client.application.url_map.iter_rules() if "GET" in (rule.methods or ())]
        assert len(rules) > 10
        for rule in rules:
            path = re.sub(r"<[^>]*any\(json, csv\)[^>]*>", "csv", rule.rule)
            path = re.sub(r"<[^>]+>", "x", path)
            answer = client.get(path, buffered=True)
            public = rule.endpoint in {"static", "style", "healthz", "sign_in.sign_in"}
            assert (answer.status_code == 302) != public, path
            if not public:
                assert answer.location.startswith("/sign-in?next=")
        assert client.post("/actions/block", headers=SAME_ORIGIN).location == PAGE
        assert client.get("/runs", headers={"HX-Request": "true"}).status_code == 401
        # A link on another site: the cookie comes when the page has loaded itself again.
        linked = client.get("/runs", headers={"Sec-Fetch-Site": "cross-site"})
        assert linked.status_code == 200
        assert b'http-equiv="refresh"' in linked.data
        assert b"<nav" not in linked.data


def test_sign_in_starts_a_session_and_sign_out_ends_it() -> None:
    with console(**USERS) as client:
        assert sign_in(client, password="wrong").status_code == 403
        assert client.get("/search").status_code == 302
        answer = sign_in(client, next="/search?q=a%20b")
        assert (answer.status_code, answer.location) == (303, "/search?q=a%20b")
        cookie = answer.headers["Set-Cookie"]
        assert all(part in cookie for part in ("HttpOnly", "SameSite=Strict", "Path=/", "Expires="))
        assert PASSWORD not in cookie
        page = client.get("/search")
        assert page.status_code == 200
        assert b"anna, operator" in page.data
        assert "Set-Cookie" in page.headers, "the idle time begins anew"
        assert "Set-Cookie" not in client.get("/search", headers={"HX-Request": "true"}).headers
        assert "Set-Cookie" not in client.get("/static/app.css", buffered=True).headers
        assert client.get(PAGE).status_code == 302, "already signed in"
        assert client.post("/sign-out", headers=SAME_ORIGIN).location == PAGE
        assert client.get("/search").status_code == 302


def test_a_session_ends_with_its_password_its_role_its_user_and_its_key() -> None:
    with console(**USERS) as client:
        sign_in(client)
        with changed_session(client) as same:
            assert same.get("/search").status_code == 200
        for changed in (
            {"console_users": make_user("anna", "operator", PASSWORD)},
            {"console_users": ANNA.replace("operator", "viewer")},
            {"console_users": VERA},
            {"console_secret": "another secret of the tests"},
        ):
            with changed_session(client, **changed) as other:
                assert other.get("/search").status_code == 302, changed


def test_a_session_ends_after_twelve_idle_hours() -> None:
    with console(**USERS) as client:
        sign_in(client)
        for hours, status in ((11.9, 200), (12.1, 302)):
            signer = "itsdangerous.timed.time.time"
            import time

            with patch(signer, return_value=time.time() + hours * 3600):
                assert client.get("/healthz").status_code == 200
                assert client.get("/search", headers={"HX-Request": "true"}).status_code == (
                    200 if status == 200 else 401
                )


def test_wrong_passwords_are_limited_by_name_and_address() -> None:
    with console(**USERS) as client, patch("console.sign_in.time.monotonic") as clock:
        clock.return_value = 0.0
        for _ in range(MAX_TRIES):
            assert sign_in(client, password="wrong").status_code == 403
        assert sign_in(client).status_code == 429, "also the right password"
        assert sign_in(client, name="vera").status_code == 303
        assert sign_in(client, environ_base={"REMOTE_ADDR": "10.0.0.9"}).status_code == 303
        clock.return_value = TRIES_SECONDS + 1
        assert sign_in(client).status_code == 303
        for _ in range(MAX_TRIES - 1):
            sign_in(client, password="wrong")
        assert sign_in(client).status_code == 303, "a right password forgets the wrong ones"
        assert sign_in(client, password="wrong").status_code == 403


def test_wrong_passwords_are_limited_by_address_over_all_names() -> None:
    with (
        console(**USERS) as client,
        patch("console.sign_in.time.monotonic") as clock,
        patch("console.sign_in.check_password_hash", lambda _, password: password == PASSWORD),
    ):
        clock.return_value = 0.0
        for _ in range(MAX_TRIES_OF_ADDRESS + 1):
            assert sign_in(client).status_code == 303, "right passwords do not count"
        for number in range(MAX_TRIES_OF_ADDRESS):
            assert sign_in(client, name=f"nobody{number}", password="wrong").status_code == 403
        refused = sign_in(client)
        assert refused.status_code == 429
        assert "from your address" in refused.text
        assert sign_in(client, environ_base={"REMOTE_ADDR": "10.0.0.9"}).status_code == 303
        clock.return_value = TRIES_SECONDS + 1
        assert sign_in(client).status_code == 303


def test_no_thread_waits_for_passwords_that_others_have_checked() -> None:
    checking, done = Semaphore(0), Event()

    def check(_: str, password: str) -> bool:
        checking.release()
        assert done.wait(20)
        return password == PASSWORD

    with (
        console(**USERS) as client,
        patch("console.sign_in.check_password_hash", check),
        patch("console.sign_in.HASHING_WAIT_SECONDS", 0.0),
        ThreadPoolExecutor(MAX_HASHING) as threads,
    ):
        others = [client.application.test_client() for _ in range(MAX_HASHING)]
        held = [threads.submit(sign_in, other, name="vera") for other in others]
        try:
            for _ in held:
                assert checking.acquire(timeout=20)
            for _ in range(MAX_TRIES + 1):
                assert "Others are signing in" in (answer := sign_in(client)).text
                assert answer.status_code == 429
        finally:
            done.set()
        assert [answer.result().status_code for answer in held] == [303] * MAX_HASHING
        assert sign_in(client).status_code == 303, "what was not checked is not counted"


def test_an_unknown_name_costs_as_many_hashes_as_a_known_one() -> None:
    with console(**USERS) as client, patch("console.sign_in.check_password_hash", return_value=True) as check:
        assert sign_in(client, name="nobody").status_code == 403
        assert sign_in(client, name="anna").status_code == 303
        assert check.call_count == 2


@pytest.mark.parametrize(
    ("target", "inside"),
    [
        ("/runs?state=live", True),
        ("/", True),
        ("//evil.example/", False),
        ("https://evil.example/", False),
        ("/\\evil.example", False),
        ("/\t/evil.example", False),
        ("javascript:alert(1)", False),
        ("runs", False),
        ("", False),
    ],
)
def test_after_sign_in_only_pages_of_the_console_are_opened(target: str, inside: bool) -> None:
    with console(**USERS) as client:
        with client.application.test_request_context("/"):
            assert local_target(target) == (target if inside else None)
        with client.application.test_request_context("/", base_url="http://localhost/console"):
            assert local_target(target) is None
            assert local_target("/console/runs") == "/console/runs"
        assert sign_in(client, next=target).location == (target if inside else "/")


def test_errors_are_pages_that_say_what_to_do() -> None:
    with console() as client:
        client.application.testing = False
        client.application.config["PROPAGATE_EXCEPTIONS"] = False

        @client.application.get("/fail/<int:status>")
        def fail(status: int) -> str:
            if status == 500:
                raise ZeroDivisionError
            if status == 503:
                raise StoreError("Redis at <b>: gone; check it")
            abort(status)

        for status in (400, 403, 404, 409, 413, 429, 500, 503):
            answer = client.get(f"/fail/{status}")
            assert answer.status_code == status
            assert b"<nav" in answer.data
            assert b"Home" in answer.data
            assert b"werkzeug" not in answer.data.lower()
        assert b"Redis at &lt;b&gt;: gone" in answer.data
        assert client.post("/runs", headers=SAME_ORIGIN).status_code == 405
        assert client.get("/nothing").status_code == 404
    with console(**USERS) as client:
        assert sign_in(client, password="x" * 70_000).status_code == 413


@pytest.mark.parametrize("strips", [True, False])
def test_under_a_prefix_every_address_has_it(strips: bool) -> None:
    prefix = "/overnight/console"
    with console(url_prefix=prefix, **USERS) as client:
        before = "" if strips else prefix
        answer = client.get(f"{before}/search?q=x")
        assert answer.location == f"{prefix}/sign-in?next={prefix}/search?q%3Dx"
        page = client.get(f"{before}{PAGE}").text
        links = re.findall(r'(?:href|src|action)="([^"#]+)', page)
        assert len(links) > 4
        assert [link for link in links if not link.startswith(f"{prefix}/")] == []
        signed_in = sign_in(client, base_url=f"http://localhost{before}")
        assert f"Path={prefix};" in signed_in.headers["Set-Cookie"]


def test_password_is_asked_twice_and_printed_as_a_user() -> None:
    runner = CliRunner()
    done = runner.invoke(cli, ["password", "anna", "--role", "operator"], input=f"{PASSWORD}\n{PASSWORD}\n")
    assert done.exit_code == 0
    line = done.stdout.strip().splitlines()[-1]
    assert PASSWORD not in done.output
    with console(console_users=line, local_operator="") as client:
        assert sign_in(client).status_code == 303
    for name, typed, message in (
        ("anna", "short\nshort\n", "8 to 200 characters"),
        ("a b", f"{PASSWORD}\n{PASSWORD}\n", "letters"),
        ("anna", f"{PASSWORD}\nother\n", "do not match"),
    ):
        done = runner.invoke(cli, ["password", name], input=typed)
        assert done.exit_code != 0
        assert message in done.output


def logged_requests(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines of the access log; other loggers may write too, if a test before made them."""
    return [record.getMessage() for record in caplog.records if record.name == "console.access_log"]


def test_the_access_log_names_pages_and_visitors_not_what_they_look_at(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="console.access_log")
    for switch in ("on", "off"):
        with open_console(Settings.of(access_log=switch == "on")) as client:
            client.get("/search?q=secret-words")
            client.get("/nothing/secret-words", headers={"User-Agent": "secret-words"})
            client.get("/static/app.js", buffered=True)
            client.get("/healthz")
    lines = [re.sub(r" in \d+ ms", "", line) for line in logged_requests(caplog)]
    assert lines == ["GET /search: 200 for anna", "GET no page: 404 for anna"]


def test_refusals_are_logged_and_have_their_status_and_the_headers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="console.access_log")
    asked = {
        "POST no page: 403": ("/search", {"headers": {"Sec-Fetch-Site": "cross-site"}}),
        "POST /sign-in: 413": ("/sign-in", {"headers": SAME_ORIGIN, "data": {"name": "x" * 70_000}}),
        "POST /sign-in: 400": ("/sign-in", {"headers": SAME_ORIGIN, "data": {"name": "a\0b"}}),
        "GET /search: 400": ("/search?q=%ff", {}),
        "GET /search: 401": ("/search", {"headers": {"HX-Request": "true"}}),
    }
    with open_console(Settings.of(access_log=True), **USERS) as client:
        answers = {
            line: client.open(path, method=line.split()[0], **options)
            for line, (path, options) in asked.items()
        }
    with open_console(Settings.of(access_log=True)) as client:
        answers["GET /runs: 400"] = client.get("/runs", headers={"Host": "evil.example"})
    for line, answer in answers.items():
        assert answer.status_code == int(line[-3:]), line
        assert answer.headers["Content-Security-Policy"] == CSP
    lines = [re.sub(r" in \d+ ms for nobody", "", line) for line in logged_requests(caplog)]
    assert lines == list(answers)
