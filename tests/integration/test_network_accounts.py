"""People of the demo's network, without a browser: registration, sessions, profiles, looking as somebody."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from unittest.mock import patch

import pyarrow as pa
import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.security import generate_password_hash
from werkzeug.test import TestResponse

from console.sign_in import MAX_TRIES
from demo.network_app.accounts import NameTakenError
from demo.network_app.context import EXTENSION
from demo.network_app.sessions import VISIT_SECONDS
from demo.simulate import simulate
from demo.view_files import load_network
from tests.support.batch import execute, query
from tests.support.network_app import PASSWORD
from tests.support.network_client import SAME_ORIGIN, open_network_app, register
from tests.support.network_files import ODD, make_tables, write_network

ODD_TEXT = "a:b %(x)s \"'"
"""The name of a column."""


@pytest.fixture
def network(database_url: str, tmp_path: Path) -> Iterator[Flask]:
    """The app over a simulated network, whose people are 200 to 259."""
    simulate(database_url, 60, 40, 900, seed=1)
    with open_network_app(database_url, tmp_path, console_url="http://127.0.0.1:8002") as app:
        yield app


def send(client: FlaskClient, path: str, **form: str) -> TestResponse:
    """Send a form of the app's own page."""
    return client.post(path, data=form, headers=SAME_ORIGIN)


def sign_in(app: Flask, name: str, password: str = PASSWORD, **more: str) -> tuple[FlaskClient, TestResponse]:
    """Sign in with a new browser."""
    client = app.test_client()
    return client, send(client, "/sign-in", name=name, password=password, **more)


def count(database_url: str, table: str) -> int:
    ((found,),) = query(database_url, f"SELECT count(*) FROM {table}")
    return int(found)


def visit_of(client: FlaskClient) -> str:
    client.get("/people")
    with client.session_transaction() as session:
        return str(session["visit"])


def test_what_is_wrong_with_a_registration_stands_beside_its_field(network: Flask, database_url: str) -> None:
    client = network.test_client()
    wrong = {"name": "\x07 ", "password": "1234567", "profile.age": "4e9", "profile.country": "Nowhere"}
    answer = send(client, "/register", **wrong | {"profile.gender": "1"})
    assert answer.status_code == 400
    for problem in (
        "The name is empty",
        "must have 8 to 200 characters",
        "Write a whole number",
        "Choose one of the list",
    ):
        assert problem in answer.text
    assert "1234567" not in answer.text
    assert 'value="4e9"' in answer.text  # kept
    answer = send(client, "/register", name="<b>Anna</b>", password="")
    assert 'value="&lt;b&gt;Anna&lt;/b&gt;"' in answer.text
    for name, password in (
        ("a" * 41, PASSWORD),
        ("Person\u200b 200", PASSWORD),
        ("Anna", "a" * 201),
        ("Anna", ""),
    ):
        assert send(client, "/register", name=name, password=password).status_code == 400
    too_old = {"name": "Anna", "password": PASSWORD, "profile.age": str(2**31)}
    assert send(client, "/register", **too_old).status_code == 400
    assert count(database_url, '"user"') == 60
    assert count(database_url, "activity") == count(database_url, "account") == 0


def test_a_name_is_taken_once_whatever_its_case_and_by_one_of_several_at_once(
    network: Flask, database_url: str
) -> None:
    register(network, " \u0410\u043d\u043d\u0430  K\u202e. ", gender="1", country="Russia")
    for name in ("\u0430\u043d\u043d\u0430 k.", "\u0410\u041d\u041d\u0410\u200b K."):
        answer = send(network.test_client(), "/register", name=name, password=PASSWORD)
        assert answer.status_code == 400
        assert "is called" in answer.text
    both = Barrier(2, timeout=30)

    def hash_together(password: str, method: str) -> str:
        both.wait()  # both have found the name free
        return generate_password_hash(password, method=method)

    hashing = "demo.network_app.accounts.generate_password_hash"
    with patch(hashing, hash_together), ThreadPoolExecutor(2) as threads:
        clients = [network.test_client() for _ in range(2)]
        answers = threads.map(lambda each: send(each, "/register", name="Ben", password=PASSWORD), clients)
    assert sorted(answer.status_code for answer in answers) == [303, 400]
    assert count(database_url, '"user"') == 62
    rows = query(database_url, "SELECT name, password_hash, user_id FROM account ORDER BY user_id")
    assert [name for name, _, _ in rows] == ["\u0410\u043d\u043d\u0430 K.", "Ben"]
    assert all(hashed.startswith("scrypt:") for _, hashed, _ in rows)
    known = "SELECT gender, age, country, city FROM recs.users WHERE user_id = 260"
    assert query(database_url, known) == [(1, None, "Russia", None)]
    done = query(database_url, "SELECT user_id, kind FROM activity ORDER BY id")
    assert done == [(user, "register") for _, _, user in rows]


def test_what_people_write_is_not_in_the_log_of_postgres(network: Flask, database_url: str) -> None:
    network.testing = False  # errors are pages
    ((data_folder,),) = query(database_url, "SHOW data_directory")
    log = Path(data_folder) / "log"
    before = log.stat().st_size
    first, second = register(network, "Anna"), register(network, "Ben")
    with pytest.raises(NameTakenError):
        network.extensions[EXTENSION].accounts._insert("Anna", "anna", "scrypt:hash-of-anna", {})
    execute(database_url, "ALTER TABLE message ADD CHECK (length(text) < 5)")
    sent = send(first, "/messages/send", user="261", text="a secret for Ben")
    assert sent.status_code == 500
    assert send(second, "/messages/send", user="260", text="Hi.").status_code == 303
    execute(database_url, "ALTER TABLE account ADD CHECK (name = name_key) NOT VALID")
    refused = send(network.test_client(), "/register", name="Carla Secret", password=PASSWORD)
    assert refused.status_code == 500
    with network.extensions[EXTENSION].engine.connect() as connection:
        connection.execute(sa.text("SET statement_timeout = 1"))
        with pytest.raises(sa.exc.OperationalError, match="statement timeout"):
            connection.execute(sa.text("SELECT pg_sleep(9), :text"), {"text": "a secret that takes long"})
    logged = log.read_bytes()[before:].decode()
    assert logged.count("violates check constraint") == 2
    assert "statement timeout" in logged
    assert not re.search("secret|Anna|scrypt|already exists", logged, re.IGNORECASE), logged


def test_registrations_and_wrong_passwords_are_limited(database_url: str, tmp_path: Path) -> None:
    simulate(database_url, 5, 5, 60, seed=1)
    with open_network_app(database_url, tmp_path, max_registrations=2) as app:
        register(app, "Anna")
        for _ in range(3):  # does not count
            answer = send(app.test_client(), "/register", name="anna", password=PASSWORD)
            assert answer.status_code == 400
        register(app, "Ben")
        answer = send(app.test_client(), "/register", name="Carl", password=PASSWORD)
        assert answer.status_code == 429
        assert "Too many people registered" in answer.text
        assert count(database_url, "account") == 2

        assert sign_in(app, "nobody")[1].status_code == 403
        for _ in range(MAX_TRIES):
            answer = sign_in(app, "Anna", "wrong password")[1]
            assert answer.status_code == 403
            assert "Name or password is wrong" in answer.text
            assert "wrong password" not in answer.text
        assert sign_in(app, "ANNA")[1].status_code == 429  # the right password, too late
        assert sign_in(app, "ben")[1].location == "/"
    done = query(database_url, "SELECT kind FROM activity ORDER BY id")
    assert done == [("register",), ("register",), ("sign_in",)]


def test_sessions_end_and_nothing_is_written_without_one(network: Flask, database_url: str) -> None:
    stranger = network.test_client()
    assert stranger.get("/people/200?a=b").location == "/register?next=/people/200?a%3Db"
    assert stranger.get("/").location == "/register"
    assert stranger.get("/people", headers={"HX-Request": "true"}).status_code == 401
    for path in ("/like", "/me", "/sign-out", "/look/end", "/me/sign-out-everywhere"):
        assert send(stranger, path, post="1").status_code == 401

    here = register(network, "Anna")
    assert here.get("/register").location == here.get("/sign-in").location == "/"
    there, answer = sign_in(network, "Anna", next="/people?q=a")
    assert answer.location == "/people?q=a"
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    for outside in ("//evil.example/", "https://evil.example/", "/\\evil.example"):
        assert sign_in(network, "Anna", next=outside)[1].location == "/"
    assert here.post("/me/sign-out-everywhere", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert there.get("/me").status_code == 200
    assert send(here, "/me/sign-out-everywhere").location == "/sign-in"
    assert here.get("/me").status_code == there.get("/me").status_code == 302
    again, _ = sign_in(network, "Anna")
    assert send(again, "/sign-out").location == "/register"
    assert again.get("/me").status_code == 302

    again, _ = sign_in(network, "Anna")
    visit = visit_of(again)
    assert visit_of(again) == visit
    later = time.time() + VISIT_SECONDS + 1
    with patch("demo.network_app.sessions.time.time", lambda: later):
        assert visit_of(again) != visit
    with again.session_transaction() as session:  # of a network that was here before
        session["user"] = "00000000-0000-4000-8000-000000000001"
    assert again.get("/me").location == "/register?next=/me"
    execute(database_url, "DELETE FROM account")
    assert sign_in(network, "Anna")[1].status_code == 403


def test_one_looks_as_simulated_people_only(network: Flask, database_url: str) -> None:
    register(network, "Anna")
    looker = network.test_client()
    for user, status in (("260", 403), ("999", 404), ("x", 404), ("", 404)):
        answer = send(looker, "/look", user=user)
        assert answer.status_code == status
        assert 'role="alert"' in answer.text
    assert send(looker, "/look", user="200", next="/me").location == "/me"
    page = looker.get("/me").text
    assert "You look as <strong>person 200</strong>" in page
    assert "Only they may change it" in page
    assert "Sign out everywhere" not in page
    assert send(looker, "/me", **{"profile.age": "30"}).status_code == 403
    assert send(looker, "/me/sign-out-everywhere").status_code == 403
    assert looker.get("/register").status_code == 200  # who looks may register
    assert send(looker, "/look/end").location == "/register"
    assert looker.get("/me").status_code == 302

    ben = register(network, "Ben")
    before = visit_of(ben)
    assert "Look as this person" not in ben.get("/people/260").text
    assert "Write a message" in ben.get("/people/260").text
    assert send(ben, "/look", user="260").status_code == 403
    assert send(ben, "/look", user="201").status_code == 303
    assert visit_of(ben) != before  # of the other's own
    assert "Back to Ben" in ben.get("/me").text
    assert "Write a message" not in ben.get("/people/260").text
    execute(
        database_url,
        "INSERT INTO account (user_id, name, name_key, password_hash) VALUES (201, 'Late', 'late', '')",
    )
    assert "You look as" not in ben.get("/me").text
    assert send(ben, "/look/end").location == "/"
    done = "SELECT object_id FROM activity WHERE user_id = 261 AND kind = 'look'"
    assert query(database_url, done) == [("201",)]


def test_people_are_found_and_have_their_data(network: Flask, database_url: str) -> None:
    anna, ben = register(network, "<b>Anna</b>"), register(network, "Ben")
    page = anna.get("/people").text
    assert page.index(">Ben<") < page.index("&lt;b&gt;Anna&lt;/b&gt;</a>")  # newest first
    assert "person 249" in page
    assert "person 250" not in page
    assert 'href="/people?after=249"' in page
    second = anna.get("/people?after=249").text
    assert "person 250" in second
    assert "More people" not in second
    assert "person 205" in anna.get("/people?q=person 205").text
    assert "person 205" in anna.get("/people?q=205").text
    found = anna.get("/people?q=aNN").text
    assert "&lt;b&gt;Anna&lt;/b&gt;</a>" in found
    assert ">Ben<" not in found
    assert anna.get("/people/999").status_code == anna.get("/people/x").status_code == 404

    assert send(ben, "/me", **{"profile.age": "-", "profile.country": "Russia"}).status_code == 400
    assert send(ben, "/me", **{"profile.age": "41", "profile.country": "Russia"}).location == "/me?saved=yes"
    assert query(database_url, "SELECT age, country FROM recs.users WHERE user_id = 261") == [(41, "Russia")]
    assert 'value="41"' in ben.get("/me").text
    send(ben, "/me", **{"profile.country": ""})
    assert query(database_url, "SELECT age, country FROM recs.users WHERE user_id = 261") == [(None, None)]
    page = ben.get("/me").text
    assert "No night has made lists yet" in page
    assert 'href="http://127.0.0.1:8002/users/261"' in page

    ((post,),) = query(database_url, "SELECT min(post_id) FROM recs.posts WHERE topic IS NOT NULL")
    send(ben, "/like", post=str(post))
    assert "<meter" in ben.get("/me").text
    answer = ben.get("/me/data.json")
    assert "attachment" in answer.headers["Content-Disposition"]
    data = json.loads(answer.text)
    assert data["account"][0]["name"] == "Ben"
    kinds = [row["kind"] for row in data["activity"]]
    assert kinds == ["register", "profile", "profile", "view", "like"]
    assert data["profile"][0]["id"] == 261
    assert "scrypt" not in answer.text
    assert "Anna" not in answer.text


def test_newcomers_begin_with_popular_posts_of_several_communities(network: Flask, database_url: str) -> None:
    anna = register(network, "Anna")
    page = anna.get("/welcome").text
    shown = [int(part.partition('"')[0]) for part in page.split('data-post="')[1:]]
    assert len(shown) == 12
    of = dict(query(database_url, "SELECT post_id, topic FROM recs.posts WHERE text IS NOT NULL"))
    topics = [of[post] for post in shown]
    assert len(set(topics)) >= 4
    assert max(map(topics.count, topics)) <= 3
    likes = "SELECT post_id FROM recs.interactions WHERE action = 'like' GROUP BY 1"
    likes += " ORDER BY count(DISTINCT user_id) DESC, 1"
    ((best,), *_) = query(database_url, likes)
    assert shown[0] == best
    send(anna, "/like", post=str(shown[0]))
    assert anna.get("/welcome").text.count('aria-pressed="true"') == 1


@pytest.mark.parametrize("kind", ["uuid", "text"])
def test_ids_and_attributes_of_any_network(database_url: str, tmp_path: Path, kind: str) -> None:
    def name(number: int) -> str:
        return f"00000000-0000-4000-8000-{number:012d}" if kind == "uuid" else f"a/{number} ?"

    tables = make_tables()
    for table in ("users", "interactions"):
        names = [name(number) for number in tables[table]["user_id"].to_pylist()]
        at = tables[table].column_names.index("user_id")
        tables[table] = tables[table].set_column(at, "user_id", pa.array(names))
    tables["users"] = tables["users"].append_column(ODD_TEXT, pa.array(['"<i>', "%s", None]))
    load_network(database_url, write_network(tmp_path / "files", ".parquet", tables))
    with open_network_app(database_url, tmp_path) as app:
        attributes = {each.name: each for each in app.extensions[EXTENSION].accounts.attributes}
        assert ODD not in attributes  # of a type that no form asks for
        assert attributes["paying"].options == ("yes", "no")
        assert attributes[ODD_TEXT].options == ('"<i>', "%s")
        assert attributes["city"].suggestions == ('The "City"',)  # the other one is of several lines
        assert attributes["age"].usual == (7, 31)
        profile = {"age": "-3", "paying": "no", "city": "P:erm %(a)s", ODD_TEXT: '"<i>'}
        anna = register(app, "Anna", **profile)
        saved = f"SELECT age, paying, city, {quote(ODD_TEXT)} FROM recs.users WHERE age = -3"
        assert query(database_url, saved) == [(-3, False, "P:erm %(a)s", '"<i>')]
        ((me,),) = query(database_url, "SELECT user_id::text FROM account")
        assert me not in {name(number) for number in range(4)}
        page = anna.get("/me").text
        assert 'value="P:erm %(a)s"' in page
        assert '<option value="no" selected>' in page
        assert anna.get(f"/people/{me}").status_code == 200
        looked_at = anna.get("/person", query_string={"id": name(1)})
        assert "Look as this person" in looked_at.text
        assert send(anna, "/look", user=name(1)).status_code == 303
        assert anna.get("/me").status_code == anna.get("/people").status_code == 200
        assert json.loads(anna.get("/me/data.json").text)["profile"][0]["paying"] is False
        with patch("demo.network_app.pages.profiles.PAGE_PEOPLE", 2):
            assert name(3) in anna.get("/people", query_string={"after": name(2)}).text


def quote(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'
