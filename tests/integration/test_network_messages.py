"""Messages are between two people with accounts, and nobody else sees them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from contract.ids import IdKind
from demo.network_app.messages import MAX_MESSAGES, MAX_TEXT
from demo.network_app.pages.messages import PAGE_MESSAGES
from demo.simulate import simulate
from tests.support.batch import execute, query
from tests.support.network_client import SAME_ORIGIN, open_network_app, register


@pytest.fixture
def app(database_url: str, tmp_path: Path) -> Iterator[Flask]:
    """The app over a small network whose people have texts as ids, which no path can hold."""
    simulate(database_url, 20, 10, 100, seed=1, ids=IdKind.TEXT)
    execute(database_url, """ALTER TABLE "user" ALTER id SET DEFAULT 'a/b ' || gen_random_uuid()::text""")
    with open_network_app(database_url, tmp_path) as opened:
        yield opened


def id_of(database_url: str, name: str) -> str:
    ((user_id,),) = query(database_url, f"SELECT user_id FROM account WHERE name = '{name}'")
    assert isinstance(user_id, str)
    return user_id


def send(client: FlaskClient, to: str, text: str) -> TestResponse:
    return client.post("/messages/send", data={"user": to, "text": text}, headers=SAME_ORIGIN)


def read_thread(client: FlaskClient, other: str, **arguments: str) -> TestResponse:
    return client.get("/messages", query_string={"with": other} | arguments)


def test_two_people_write_to_each_other(app: Flask, database_url: str) -> None:
    anna, boris, clara = (register(app, name) for name in ("Anna", "Boris", "Clara"))
    of_anna, of_boris, of_clara = (id_of(database_url, name) for name in ("Anna", "Boris", "Clara"))
    sent = send(anna, of_boris, "  Hello\r\n\x1b[31mBoris\t!  ")
    assert (sent.status_code, "with=" in sent.location) == (303, True)
    assert query(database_url, "SELECT text, read_at FROM message") == [("Hello\n[31mBoris !", None)]
    assert "1 unread" in boris.get("/communities").text
    inbox = boris.get("/messages").text
    assert all(text in inbox for text in ("Anna", "1 unread", "Hello"))
    page = read_thread(boris, of_anna).text
    assert "<strong>new</strong>" in page
    assert "1 unread" in boris.get("/messages").text  # no GET writes

    form = {"user": of_anna, "last": re.findall(r'name="last" value="(\d+)"', page)[0]}
    assert boris.post("/messages/read", data=form, headers=SAME_ORIGIN).status_code == 303
    assert "unread" not in boris.get("/messages").text
    assert ", read" in read_thread(anna, of_boris).text
    send(anna, of_boris, "And?")
    htmx = SAME_ORIGIN | {"HX-Request": "true"}
    assert boris.post("/messages/read", data=form, headers=htmx).status_code == 204
    assert "1 unread" in boris.get("/messages").text  # only up to the message that the page showed
    assert send(boris, of_anna, "Here I am").status_code == 303
    assert "unread" not in boris.get("/messages").text  # an answer says that it was read
    assert [text for (text,) in query(database_url, "SELECT text FROM message ORDER BY id DESC")] == [
        "Here I am",
        "And?",
        "Hello\n[31mBoris !",
    ]
    assert query(database_url, "SELECT count(*) FROM activity WHERE kind = 'message'") == [(3,)]

    assert "No messages yet" in clara.get("/messages").text
    assert "Hello" not in read_thread(clara, of_anna).text
    for client, other in (
        (anna, of_anna), (anna, "nobody"), (anna, ""), (anna, "simulated"), (app.test_client(), of_anna),
    ):  # fmt: skip
        found = other
        if other == "simulated":
            ((found,),) = query(
                database_url,
                "SELECT min(user_id) FROM recs.users WHERE user_id NOT IN (SELECT user_id FROM account)",
            )
        status = 404 if client is anna else 302
        assert read_thread(client, found).status_code == status, other
        assert send(client, found, "x").status_code == (404 if client is anna else 401), other
    assert query(database_url, "SELECT count(*) FROM message") == [(3,)]

    # Who looks as somebody without an account sees no messages, neither theirs nor their own.
    ((simulated,),) = query(
        database_url, "SELECT max(user_id) FROM recs.users WHERE user_id NOT IN (SELECT user_id FROM account)"
    )
    assert anna.post("/look", data={"user": simulated}, headers=SAME_ORIGIN).status_code == 303
    assert "Here I am" not in anna.get("/messages").text
    assert read_thread(anna, of_boris).status_code == 404
    assert send(anna, of_boris, "as another").status_code == 404
    assert anna.post("/messages/read", data=form, headers=SAME_ORIGIN).status_code == 404
    assert of_clara not in anna.get("/messages").text


def test_what_cannot_be_sent_stays_in_the_form(app: Flask, database_url: str) -> None:
    anna = register(app, "Anna")
    register(app, "Boris")
    to = id_of(database_url, "Boris")
    for text, problem in (
        ("", "is empty"),
        (" \n\u200b\x00 ".replace("\x00", ""), "is empty"),
        ("x" * (MAX_TEXT + 1), "2,001"),
    ):
        answer = send(anna, to, text)
        assert (answer.status_code, problem in answer.text) == (400, True)
        assert f">\n{text}</textarea>" in answer.text
    assert query(database_url, "SELECT count(*) FROM message") == [(0,)]
    assert send(anna, to, "é" * MAX_TEXT).status_code == 303
    # 30 in a minute, one of them an older one.
    execute(database_url, "UPDATE message SET sent_at = now() - interval '61 seconds'")
    for number in range(MAX_MESSAGES):
        assert send(anna, to, f"number {number}").status_code == 303
    refused = send(anna, to, "one too <many>")
    assert (refused.status_code, "one too &lt;many&gt;" in refused.text) == (429, True)
    assert query(database_url, "SELECT count(*) FROM message") == [(1 + MAX_MESSAGES,)]
    assert query(database_url, "SELECT count(*) FROM activity WHERE kind = 'message'") == [
        (1 + MAX_MESSAGES,)
    ]


def test_long_threads_have_pages(app: Flask, database_url: str) -> None:
    anna = register(app, "Anna")
    register(app, "Boris")
    to, me = id_of(database_url, "Boris"), id_of(database_url, "Anna")
    execute(
        database_url,
        f"""INSERT INTO message (from_id, to_id, text)
            SELECT '{to}', '{me}', 'message ' || n || '.' FROM generate_series(1, {PAGE_MESSAGES + 5}) n""",
    )
    first = read_thread(anna, to)
    texts = re.findall(r"message (\d+)\.", first.text)
    assert texts == [str(number) for number in range(PAGE_MESSAGES + 5, 5, -1)]
    (older,) = re.findall(r'rel="next" href="([^"]*)"', first.text)
    second = anna.get(older.replace("&amp;", "&")).text
    assert re.findall(r"message (\d+)\.", second) == ["5", "4", "3", "2", "1"]
    assert "<textarea" not in second
    for odd in ("x", "-1", "9" * 30, "\u0661"):
        assert read_thread(anna, to, before=odd).status_code == 404
        assert anna.get("/messages", query_string={"before": odd}).status_code == 404
