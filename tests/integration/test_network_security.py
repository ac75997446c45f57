"""Whatever a request to the network's app holds, it harms nobody: origins, sessions, odd input, texts."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

import pytest
import sqlalchemy as sa
from flask import Flask
from itsdangerous import URLSafeTimedSerializer
from markupsafe import escape
from werkzeug.routing import Rule

from batch.runs import ledger
from console.security import HEADERS
from demo.network_app import accounts
from demo.network_app.sessions import PUBLIC
from demo.postgres import make_engine
from demo.simulate import simulate
from tests.integration.test_console_inputs import RAW, UNREADABLE
from tests.support.batch import execute, query
from tests.support.batch_live import copy_database
from tests.support.network_app import PASSWORD
from tests.support.network_client import SAME_ORIGIN, open_network_app, register

STARTS_PROCESSES = {"feed.refresh", "posts.explain"}
"""Endpoints that start a command; what they refuse is tested without it."""

BOOKKEEPING = {"shown_list"}
"""Tables that hold what a page showed, and that no view reads: a GET may write them."""

FIELD = re.compile(r'request\.(?:args|form|values)\.get\(\s*"([\w-]+)"')

VALUES = (
    "", " ", "nope", "-1", "99999999999999999999", "\u0661", "a'b\"c", "%", "\n", "é" * 300,
    "9999-12-31T23:59:59-14:00~x",
)  # fmt: skip
"""What a field or a part of a path may hold."""

WORST = ("99999999999999999999", "a'b\"c", "é" * 300)
"""What one field holds beside others that are right."""

RIGHT = {
    "user": "200", "post": "3", "community": "business", "text": "a text", "name": "a name", "about": "x",
    "after": "", "before": "", "order": "newest", "page": "1", "id": "3", "q": "a", "with": "200",
}  # fmt: skip

HOSTILE = (
    "<img src=x onerror=alert(1)>", "\"><svg onload=alert(2)>", "' onmouseover=alert(3) x='",
    "</textarea></title><script>alert(4)</script>", "{{ 7 * 7 }}{% raw %}", "javascript:alert(5)",
    "\u202egnp.exe", "a/../b?c=d#e&f;%00%ff",
)  # fmt: skip


class Markup(HTMLParser):
    """What a page has that only somebody's text can have brought."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        if tag in {"img", "svg", "iframe"} or (tag == "script" and "src" not in names):
            self.found.append(tag)
        for name, value in names.items():
            text = (value or "").strip().lower()
            runs = name.startswith("on") or (name.startswith("hx-") and "alert" in text)
            leads = name in {"href", "src", "action", "formaction"} and text.startswith(("javascript:", "//"))
            if runs or leads or name == "style":
                self.found.append(f"{tag} {name}={value}")


class Network(NamedTuple):
    """The app, and the database that it is over."""

    app: Flask
    database_url: str

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        return query(self.database_url, statement)

    def id_of(self, name: str) -> Any:
        ((user_id,),) = self.query(f"SELECT user_id FROM account WHERE name = '{name}'")
        return user_id

    def contents(self) -> dict[str, str]:
        """Return a sum of the rows of each table."""
        tables = self.query("SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'")
        rows = "md5(coalesce(string_agg(t::text, '|' ORDER BY t::text), ''))"
        return {
            name: self.query(f"SELECT {rows} FROM {name} t")[0][0]
            for (name,) in tables
            if name not in BOOKKEEPING
        }

    @property
    def rules(self) -> list[Rule]:
        """The rules of all pages, without files."""
        rules = self.app.url_map.iter_rules()
        return [rule for rule in rules if not rule.build_only and rule.endpoint not in PUBLIC]


@pytest.fixture(scope="module")
def network(postgres_server: sa.URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """The app over one simulated network for all tests; serving answers with some of its posts."""
    with copy_database(postgres_server) as database_url:
        simulate(database_url, 40, 30, 600, seed=1)
        cities = "SELECT 'City ' || n, md5(n::text) FROM generate_series(1, 30) n"  # too many to choose from
        execute(database_url, f"""INSERT INTO "user" (city, country) {cities}""")
        engine = make_engine(database_url)
        ledger.create(engine)
        engine.dispose()
        with open_network_app(database_url, tmp_path_factory.mktemp("app"), *range(1, 25)) as app:
            yield Network(app, database_url)


def addresses_of(network: Network, rule: Rule) -> list[str]:
    """Return addresses of a rule's page, with values that there are."""
    ((community,),) = network.query("SELECT min(name) FROM community")
    values = {"user_id": str(network.query("SELECT min(user_id) FROM account")[0][0]), "post_id": "3"}
    values["name"] = community
    path = re.sub(r"<(?:\w+:)?(\w+)>", lambda found: quote(values[found[1]], safe=""), rule.rule)
    return [path]


def fields_of(network: Network, rule: Rule) -> set[str]:
    """Return the names of arguments and form fields that the module of a rule's page reads."""
    module = inspect.getmodule(inspect.unwrap(network.app.view_functions[rule.endpoint]))
    assert module is not None
    return set(FIELD.findall(inspect.getsource(module)))


def test_requests_of_other_sites_change_nothing(network: Network) -> None:
    client = register(network.app, "Anna of origins")
    before = network.contents()
    posts = [rule for rule in network.rules if "POST" in (rule.methods or ())]
    assert len(posts) > 12
    for headers in (
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"}, {"Origin": "http://localhost:81"},
        {"Origin": "https://localhost"}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {},
    ):  # fmt: skip
        for rule in posts:
            answer = client.post(rule.rule, data={"post": "3"}, headers=headers)
            assert (answer.status_code, "from there" in answer.text) == (403, True), (rule.rule, headers)
            assert "Set-Cookie" not in answer.headers or "session" not in answer.headers["Set-Cookie"]
    assert network.contents() == before
    for headers in (SAME_ORIGIN, {"Sec-Fetch-Site": "none"}, {"Origin": "http://localhost"}):
        assert client.post("/like", data={"post": "3"}, headers=headers).status_code == 303
    for host, status in {
        "localhost:8001": 302, "127.0.0.1": 302, "[::1]:8001": 302, "evil.example": 400,
        "localhost.evil.example": 400, "127.0.0.1.evil.example": 400, "10.0.0.1:8001": 400, "": 400,
        "[::1": 400, "a b": 400, "localhost:x": 400,
    }.items():  # fmt: skip
        assert network.app.test_client().get("/", headers={"Host": host}).status_code == status, host


def test_every_answer_has_the_headers_and_the_cookie_its_flags(network: Network) -> None:
    client = register(network.app, "Anna of headers")
    paths = ["/healthz", "/static/network.css", "/shared/app.css", "/shared/style.css", "/static/../app.py"]
    paths += [address for rule in network.rules for address in addresses_of(network, rule)]
    answers = [client.get(path, buffered=True) for path in paths]
    answers += [
        client.head("/"),
        client.options("/"),
        client.get("/nothing"),
        client.put("/", headers=SAME_ORIGIN),
    ]
    answers += [client.post("/like"), client.get("/?a=%00"), network.app.test_client().get("/")]
    answers += [client.post("/like", data=b"x" * 70_000, headers=SAME_ORIGIN)]
    statuses = {answer.status_code for answer in answers}
    assert statuses >= {200, 302, 400, 403, 404, 405, 413}
    assert max(statuses) < 500
    for answer in answers:
        missing = [
            name for name in HEADERS if name != "Cache-Control" and answer.headers.get(name) != HEADERS[name]
        ]
        assert missing == [], (answer.request.path, answer.status_code)
        is_file = answer.request.path.startswith(("/static/", "/shared/")) and answer.status_code == 200
        assert ("no-store" in answer.headers["Cache-Control"]) != is_file, answer.request.path
    signed_in = network.app.test_client().post(
        "/sign-in", data={"name": "Anna of headers", "password": PASSWORD}, headers=SAME_ORIGIN
    )
    (cookie,) = signed_in.headers.getlist("Set-Cookie")
    assert all(flag in cookie for flag in ("HttpOnly", "SameSite=Lax", "Path=/"))
    assert PASSWORD not in cookie


def test_no_get_writes_anything(network: Network) -> None:
    client = register(network.app, "Anna of reading")
    client.post("/like", data={"post": "3"}, headers=SAME_ORIGIN)
    before = network.contents()
    waiting = [address for rule in network.rules for address in addresses_of(network, rule)]
    seen = set(waiting)
    for _ in range(200):
        if not waiting:
            break
        address = waiting.pop()
        for answer in (
            client.get(address),
            client.head(address),
            client.get(address, headers={"HX-Request": "1"}),
        ):
            assert answer.status_code < 500, address
        if answer.mimetype != "text/html":
            continue
        for link in re.findall(r'(?:href|hx-get)="(/(?!static/|shared/)[^"#]*)', client.get(address).text):
            found = link.replace("&amp;", "&")
            kind = re.sub(r"\d+", "*", found)
            if kind not in seen and len(seen) < 150:
                seen |= {found, kind}
                waiting.append(found)
    assert len(seen) > 30
    assert network.contents() == before


def test_sessions_are_ours_and_end_when_they_should(network: Network, tmp_path: Path) -> None:
    app = network.app
    client = register(app, "Anna of sessions")
    anna = network.id_of("Anna of sessions")
    assert client.get("/me").status_code == 200
    name = app.config["SESSION_COOKIE_NAME"]
    cookie = client.get_cookie(name)
    assert cookie is not None

    def status_with(value: str) -> int:
        other = app.test_client()
        other.set_cookie(name, value)
        return other.get("/me").status_code

    interface: Any = app.session_interface
    signer = interface.get_signing_serializer(app)
    assert isinstance(signer, URLSafeTimedSerializer)
    genuine = signer.loads(cookie.value)
    assert status_with(signer.dumps(genuine)) == 200
    forged = URLSafeTimedSerializer("guessed", salt="cookie-session", serializer=signer.serializer)
    halves = cookie.value.split(".")
    ends = {"user": None, "epoch": 7}
    for value in (
        forged.dumps(genuine), cookie.value[:-2], ".".join([halves[0], *halves[:0:-1]]), "", "x", "." * 50,
        *(signer.dumps(genuine | {key: value}) for key, value in ends.items()),
        *(signer.dumps(genuine | {"user": value}) for value in ("x", -1, 2**70, [1], {"a": 1}, 1.5, True)),
        *(signer.dumps(genuine | {"user": None, "look": value}) for value in ("x", [1], anna, 2**70)),
        *(signer.dumps(value) for value in ({"user": anna}, {"user": anna, "epoch": None}, {"look": anna})),
    ):  # fmt: skip
        assert status_with(value) == 302, value
    # Odd parts beside a right account are no error either.
    for odd in ({"visit": 5}, {"visit": "x"}, {"visit": "'; DROP TABLE post"}, {"look": "x"}):
        assert status_with(signer.dumps(genuine | odd)) < 500, odd

    execute(network.database_url, f"UPDATE account SET epoch = epoch + 1 WHERE user_id = {anna}")
    assert client.get("/me").status_code == 302
    assert client.post("/like", data={"post": "3"}, headers=SAME_ORIGIN).status_code == 401

    # A network that replaces this one gives ids anew: its people are others.
    signed_in = app.test_client()
    form = {"name": "Anna of sessions", "password": PASSWORD}
    assert signed_in.post("/sign-in", data=form, headers=SAME_ORIGIN).status_code == 303
    assert signed_in.get("/me").status_code == 200
    account = f"SELECT user_id, name, name_key, password_hash FROM account WHERE user_id = {anna}"
    execute(
        network.database_url,
        f"CREATE TABLE kept AS {account}",
        f"DELETE FROM account WHERE user_id = {anna}",
        "INSERT INTO account (user_id, name, name_key, password_hash) SELECT * FROM kept",
        "DROP TABLE kept",
    )
    assert signed_in.get("/me").status_code == 302

    for target in (
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "/\t/evil.example",
        "evil",
        "/%0d%0aX: y",
    ):
        register(app, f"Next {len(target)} {ord(target[1])}")
        form = {"name": f"Next {len(target)} {ord(target[1])}", "password": PASSWORD, "next": target}
        location = app.test_client().post("/sign-in", data=form, headers=SAME_ORIGIN).location
        assert "evil" not in location, target
        assert "\n" not in location


def test_text_that_nothing_can_hold_is_refused_everywhere(network: Network) -> None:
    client = register(network.app, "Anna of bytes")
    before = network.contents()
    for rule in network.rules:
        path = addresses_of(network, rule)[0]
        for text in UNREADABLE:
            raw = {"PATH_INFO": path + unquote_to_bytes(text).decode("latin-1")}
            answers = [client.get("/", environ_overrides=raw), client.get(f"{path}?q={text}")]
            if "POST" in (rule.methods or ()):
                form = {"data": f"post=1&text={text}", "content_type": "application/x-www-form-urlencoded"}
                answers.append(client.post(path, headers=SAME_ORIGIN, **form))
            for answer in answers:
                assert answer.status_code == 400, (path, text)
                assert "cannot be read" in answer.text
    assert network.contents() == before


def test_no_argument_makes_a_page_fail(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    client = register(network.app, "Anna of arguments")
    session = client.get_cookie(network.app.config["SESSION_COOKIE_NAME"])
    assert session is not None
    ((anna, epoch),) = network.query("SELECT user_id, epoch FROM account WHERE name = 'Anna of arguments'")
    again = f"UPDATE account SET epoch = {epoch} WHERE user_id = {anna}"  # a page signs her out everywhere
    monkeypatch.setattr(accounts, "check_password_hash", lambda *_: False)  # takes a while
    network.app.config["PROPAGATE_EXCEPTIONS"] = False

    def check(answer: Any, what: Any) -> None:
        assert answer.status_code < 500, what
        assert not RAW.search(answer.text), what

    fields = set[str]()
    for rule in network.rules:
        names, methods = sorted(fields_of(network, rule)), rule.methods or set[str]()
        path = addresses_of(network, rule)[0]
        fields |= set(names)
        execute(network.database_url, again)
        client.set_cookie(session.key, session.value)
        asked, right = list[dict[str, str]](), {name: RIGHT[name] for name in names if name in RIGHT}
        for value in VALUES:
            if rule.arguments:
                where = re.sub(r"<[^>]*>", lambda _, value=value: quote(value, safe=""), rule.rule)  # type: ignore[misc]
                check(client.get(where), where)
            asked.append(dict.fromkeys(names, value))
        asked += [right | {name: value} for name in names for value in WORST]
        for given in asked:
            if "GET" in methods:
                check(client.get(path, query_string=given), (path, given))
            if "POST" in methods and rule.endpoint not in STARTS_PROCESSES:
                check(client.post(path, data=given, headers=SAME_ORIGIN), (path, given))
                client.set_cookie(session.key, session.value)  # some end it
    assert fields >= {"user", "post", "community", "text", "name", "before"}
    form, parts = "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"
    part = b"--x\r\nContent-Disposition: form-data; name=post; filename=a\r\n\r\n1\r\n--x--"
    for body, kind in (
        (part, parts), (b"--x", parts), (b"{", "application/json"), (b"a" * 60_000, "text/plain"),
        (b"&".join(b"post=%d" % number for number in range(5_000)), form), (b"x" * 70_000, form),
    ):  # fmt: skip
        for rule in network.rules:
            if "POST" in (rule.methods or ()) and rule.endpoint not in STARTS_PROCESSES:
                check(
                    client.post(rule.rule, data=body, content_type=kind, headers=SAME_ORIGIN),
                    (rule.rule, kind),
                )
                client.set_cookie(session.key, session.value)
    execute(network.database_url, again)
    client.set_cookie(session.key, session.value)
    for rule in network.rules:
        path, allowed = addresses_of(network, rule)[0], rule.methods or set[str]()
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "TRACE"):
            others = {
                each for other in network.rules if other.rule == rule.rule for each in other.methods or ()
            }
            if method not in allowed | others:
                answer = client.open(path, method=method, headers=SAME_ORIGIN)
                assert answer.status_code in (404, 405), (path, method)
                assert answer.status_code == 404 or answer.headers["Allow"], (path, method)


def test_what_people_write_is_text_wherever_it_is_shown(network: Network) -> None:
    app = network.app
    readers = [register(app, "Reader of texts")]
    before = network.query("SELECT count(*) FROM post")[0][0]
    for number, text in enumerate(HOSTILE):
        name, about = f"{text[:30]} {number}", f"about {text}"
        client = register(app, name, city=text[:60], country=text[:60])
        readers.append(client)
        forms = [
            ("/communities/new", {"name": name, "about": about}),
            ("/new", {"community": name.replace("\u202e", ""), "text": f"{text}\n{text} in the second line"}),
            ("/messages/send", {"user": network.id_of("Reader of texts"), "text": text}),
            ("/me", {"profile.city": text[:60]}),
        ]
        for address, form in forms:
            answer = client.post(address, data=form, headers=SAME_ORIGIN)
            assert answer.status_code == 303, (address, text, re.sub(r"\s+", " ", answer.text)[-600:])
            for character in '\n\r\t <>"':
                assert character not in answer.location, (address, text)
            assert client.get(answer.location).status_code == 200, (address, answer.location)
    written = network.query("SELECT id, author_id, topic FROM post WHERE author_id IS NOT NULL AND id > 30")
    assert len(written) >= len(HOSTILE)
    assert network.query("SELECT count(*) FROM post")[0][0] == before + len(HOSTILE)
    addresses = ["/", "/welcome", "/communities", "/messages", "/people", "/me", "/new", "/liked", "/strip"]
    for post_id, author, topic in written:
        addresses += [
            f"/posts/{post_id}",
            f"/people/{author}",
            f"/c?called={quote(topic, safe='')}",
            f"/messages/{author}",
        ]
        addresses += [f"/new?community={quote(topic, safe='')}", f"/people?q={quote(topic, safe='')}"]
        readers[0].post("/like", data={"post": post_id}, headers=SAME_ORIGIN)
    addresses += [f"/sign-in?next={quote(text)}" for text in HOSTILE]
    seen = set[str]()
    for address in addresses:
        for client in readers[:2]:
            answer = client.get(address)
            assert answer.status_code in (200, 303, 404), (address, answer.status_code)
            assert Markup(answer.text).found == [], address
            seen |= {text for text in HOSTILE if str(escape(text)) in answer.text}
    assert seen >= {text for text in HOSTILE if "\u202e" not in text}
    shown = readers[0].get("/messages").text
    assert "\u202e" not in shown
    data = readers[1].get("/me/data.json")
    assert (data.status_code, data.mimetype) == (200, "application/json")
    everything = json.loads(data.text)
    assert PASSWORD not in data.text
    assert "scrypt" not in data.text
    assert everything


def test_pages_say_that_the_database_does_not_answer(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = register(network.app, "Anna without a database")

    def fail(*_: Any, **__: Any) -> None:
        raise sa.exc.OperationalError("SELECT secret", {}, Exception("server closed\nthe connection."))

    monkeypatch.setattr(sa.Engine, "connect", fail)
    for address in ("/", "/messages", "/communities", "/register"):
        answer = client.get(address)
        assert (answer.status_code, "The database does not answer" in answer.text) == (503, True), address
        assert not re.search("secret|server closed|Traceback", answer.text)
    monkeypatch.undo()
    assert client.get("/messages").status_code == 200
