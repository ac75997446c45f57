"""Posts, liked posts and communities of the demo's network, without a browser."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from batch.runs.tables import blocked_posts
from demo.network_app.context import EXTENSION
from demo.network_app.explanations import BusyError, Explanations
from demo.simulate import simulate
from demo.view_files import load_network
from tests.support.batch import execute, query, wait_until
from tests.support.network_client import SAME_ORIGIN, open_network_app, register
from tests.support.network_files import make_network_of_likes, write_network

TEXT = "<img src=x onerror=alert(1)>\r\n\r\nSecond\u202e line\x07"
SAFE = "&lt;img src=x onerror=alert(1)&gt;"


@pytest.fixture
def network(database_url: str, tmp_path: Path) -> Iterator[Flask]:
    """The app over a simulated network; serving answers with popular posts 1 to 3."""
    simulate(database_url, 30, 40, 600, seed=1)
    with open_network_app(database_url, tmp_path, 1, 2, 3) as app:
        yield app


def send(client: FlaskClient, path: str, **form: str) -> tuple[int, str]:
    """Send a form; return the status, and where the answer sends to."""
    answer = client.post(path, data=form, headers=SAME_ORIGIN)
    return answer.status_code, answer.location or ""


def write(client: FlaskClient, community: str, text: str) -> str:
    """Write a post; return its address."""
    status, address = send(client, "/new", community=community, text=text)
    assert status == 303
    return address


def kinds_of(database_url: str, user: str) -> list[str]:
    """Return the kinds of what a person did, in order."""
    done = query(database_url, f"SELECT kind FROM activity WHERE user_id::text = '{user}' ORDER BY id")
    return [kind for (kind,) in done]


def me(database_url: str, name: str) -> str:
    ((user,),) = query(database_url, f"SELECT user_id::text FROM account WHERE name = '{name}'")
    return str(user)


def test_a_community_and_its_posts(network: Flask, database_url: str) -> None:
    anna, ben = register(network, "Anna"), register(network, "Ben")
    assert send(anna, "/communities/new", name=" Film\tclub ", about="We\nwatch") == (
        303,
        "/c?called=Film+club",
    )
    for taken in ("film CLUB", "Movie"):
        answer = ben.post("/communities/new", data={"name": taken, "about": "kept"}, headers=SAME_ORIGIN)
        assert answer.status_code == 400
        assert "There is a community" in answer.text
        assert "kept" in answer.text
    address = write(anna, "Film club", TEXT)
    post = address.removeprefix("/posts/")
    columns = "topic, text, author_id::text, created_at <= now() AND created_at > now() - interval '1 minute'"
    assert query(database_url, f"SELECT {columns} FROM recs.posts WHERE post_id = {post}") == [
        ("Film club", "<img src=x onerror=alert(1)>\n\nSecond line", me(database_url, "Anna"), True)
    ]
    for path in (address, "/c?called=Film+club", "/posts?id=" + post):
        shown = ben.get(path).text
        assert SAFE in shown
        assert "<img" not in shown
    assert "They come with the next night." in ben.get(address).text
    assert "This is your post" in anna.get(address).text

    for _ in range(2):
        assert send(ben, "/join", community="Film club") == (303, "/c?called=Film+club")
    assert "1 post, 2 members" in ben.get("/communities").text
    assert (
        send(ben, "/leave", community="Film club")[0] == send(ben, "/leave", community="Film club")[0] == 303
    )
    assert kinds_of(database_url, me(database_url, "Ben")) == ["register", "join", "leave"]

    assert send(ben, "/delete", post=post)[0] == 403
    assert send(ben, "/like", post=post)[0] == 303
    assert send(anna, "/delete", post=post) == (303, "/c?called=Film+club")
    assert send(anna, "/delete", post=post)[0] == ben.get(address).status_code == 404
    assert "You like nothing yet" in ben.get("/liked").text  # what is gone is not shown
    done = ["register", "found", "join", "post", "delete"]
    assert kinds_of(database_url, me(database_url, "Anna")) == done
    ((community,),) = query(database_url, "SELECT id::text FROM community WHERE name = 'Film club'")
    assert query(database_url, "SELECT DISTINCT object_id FROM activity WHERE kind IN ('found', 'join')") == [
        (community,)
    ]


def test_what_cannot_be_written(network: Flask, database_url: str) -> None:
    anna = register(network, "Anna")
    before = query(database_url, "SELECT (SELECT count(*) FROM post), (SELECT count(*) FROM community)")
    for community, text, problem in [
        ("movie", "x" * 2_001, "has 2,001 characters, and may have 2,000"),
        ("movie", " \x07\r\n\u202e ", "The post is empty"),
        ("movies", "a text that is kept", "Choose a community"),
        ("", "a text that is kept", "Choose a community"),
    ]:
        answer = anna.post("/new", data={"community": community, "text": text}, headers=SAME_ORIGIN)
        assert answer.status_code == 400
        assert problem in answer.text
        assert text.strip("\x07\r\n \u202e") in answer.text
    for name, about, problem in [
        ("x" * 61, "", "has 61 characters"),
        (" \t", "", "The name is empty"),
        ("fine", "x" * 301, "has 301 characters"),
    ]:
        answer = anna.post("/communities/new", data={"name": name, "about": about}, headers=SAME_ORIGIN)
        assert (answer.status_code, problem in answer.text) == (400, True)
    for path, form in [
        ("/join", {"community": "none"}), ("/leave", {"community": ""}), ("/delete", {"post": "9999"}),
        ("/delete", {"post": "'"}), ("/explain", {"post": "9999"}), ("/delete", {}),
    ]:  # fmt: skip
        assert send(anna, path, **form)[0] == 404, path
    assert send(anna, "/delete", post="1")[0] == 403  # nobody's post
    for path in (
        "/posts/9999",
        "/posts/x",
        "/posts",
        "/c/none",
        "/c",
        "/c/movie?order=x",
        "/c/movie?after=x",
    ):
        assert anna.get(path).status_code == 404, path
    for page in ("0", "x", "-1", "1" * 30, "\u0663"):
        assert anna.get("/liked", query_string={"page": page}).status_code == 404
    form = {"community": "movie", "text": "from another site"}
    assert anna.post("/new", data=form, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert (
        query(database_url, "SELECT (SELECT count(*) FROM post), (SELECT count(*) FROM community)") == before
    )


def test_one_name_founded_twice_at_once(network: Flask, database_url: str) -> None:
    clients = [register(network, f"Anna {number}") for number in range(4)]
    with ThreadPoolExecutor(len(clients)) as pool:
        answers = pool.map(
            lambda named: send(named[0], "/communities/new", name=named[1]),
            zip(clients, ("Chess", "chess", "CHESS", "cheSS"), strict=True),
        )
        assert sorted(status for status, _ in answers) == [303, 400, 400, 400]
    members = (
        "SELECT id, user_id FROM community JOIN membership ON id = community_id WHERE lower(name) = 'chess'"
    )
    assert len(query(database_url, members)) == 1


def test_a_topic_that_came_from_elsewhere(network: Flask, database_url: str) -> None:
    execute(database_url, "UPDATE post SET topic = 'a/b ünd <c>' WHERE id <= 25")
    anna = register(network, "Anna")
    assert "a/b ünd &lt;c&gt;" in anna.get("/communities").text
    assert 'value="a/b ünd &lt;c&gt;"' in anna.get("/new?community=a/b ünd <c>").text
    status, address = send(anna, "/join", community="a/b ünd <c>")
    assert status == 303
    assert query(database_url, "SELECT made_by FROM community WHERE name = 'a/b ünd <c>'") == [(None,)]

    # Both orders show each post once, over all pages. A person may have several rows of likes of one post.
    execute(database_url, "INSERT INTO feed_action SELECT 7, 1, 'like', now() FROM generate_series(1, 500)")
    likers = "SELECT count(DISTINCT user_id) FROM feed_action f WHERE f.post_id = p.post_id"
    likes = f"({likers} AND action = 'like')"
    for order, column in (("newest", "created_at"), ("liked", likes)):
        shown: list[int] = []
        counts: list[int] = []
        path: str | None = f"{address}&order={order}"
        while path:
            page = anna.get(path).text
            shown += map(int, re.findall(r'data-post="(\d+)"', page))
            counts += map(int, re.findall(r'class="count">(\d+)', page))
            more = re.search(r'rel="next" href="([^"]+)"', page)
            path = more[1].replace("&amp;", "&") if more else None
        keys = dict(query(database_url, f"SELECT post_id, {column} FROM recs.posts p WHERE post_id <= 25"))
        assert sorted(shown) == sorted(keys)
        assert [keys[post] for post in shown] == sorted(keys.values(), reverse=True), order
    assert counts == sorted(keys.values(), reverse=True)
    assert "you joined" in anna.get(address).text
    assert "No further posts" in anna.get(f"{address}&after=9999").text


@pytest.mark.parametrize("kind", ["uuid", "text"])
def test_ids_that_are_no_numbers_in_a_network_without_topics_and_texts(
    kind: str, database_url: str, tmp_path: Path
) -> None:
    def name(number: int) -> str:
        return f"00000000-0000-4000-8000-{number:012d}" if kind == "uuid" else f"a/{number} ?"

    tables = make_network_of_likes(6, 5, seed=1)
    ids = (
        ("users", "user_id"),
        ("posts", "post_id"),
        ("interactions", "user_id"),
        ("interactions", "post_id"),
    )
    for table, column in ids:
        names = [name(number) for number in tables[table][column].to_pylist()]
        at = tables[table].column_names.index(column)
        tables[table] = tables[table].set_column(at, column, pa.array(names))
    load_network(database_url, write_network(tmp_path / "files", ".parquet", tables))
    first = str(tables["posts"]["post_id"][0])
    with open_network_app(database_url, tmp_path, first) as app:
        anna, ben = register(app, "Anna"), register(app, "Ben")
        assert "There is none yet" in anna.get("/communities").text
        assert "Found the first one" in anna.get("/new").text
        assert "A post without text" in anna.get("/posts", query_string={"id": first}).text
        assert send(anna, "/communities/new", name="..") == (303, "/c?called=..")
        address = write(anna, "..", "The first text")
        assert "The first text" in ben.get(address).text
        ((post,),) = query(database_url, "SELECT post_id::text FROM recs.posts WHERE topic = '..'")
        assert send(ben, "/like", post=post)[0] == send(ben, "/like", post=first)[0] == 303
        page = ben.get("/liked").text
        assert page.index("The first text") > page.index("A post without text")  # newest like first
        assert send(ben, "/delete", post=post)[0] == 403
        assert send(anna, "/delete", post=post)[0] == 303


def test_a_blocked_post_says_so_and_similar_posts_of_likes(
    network: Flask, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna = register(network, "Anna")
    assert (
        "A moderator" not in anna.get("/posts/5").text
    )  # there is no table of blocks before the first night
    with network.extensions[EXTENSION].engine.begin() as connection:
        blocked_posts.create(connection)
        block = {"post_id": "5", "blocked_at": datetime.now(UTC), "blocked_by": "eve", "reason": "a secret"}
        connection.execute(sa.insert(blocked_posts).values(key_prefix="recs", **block))
    shown = anna.get("/posts/5").text
    assert "A moderator took this post out of all lists." in shown
    assert "secret" not in shown
    assert "A moderator" not in anna.get("/posts/6").text

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("refused")

    with monkeypatch.context() as serving_down:
        serving_down.setattr("demo.network_app.serving.http_get", fail)
        answer = anna.get("/posts/6")
        assert (answer.status_code, "They cannot be shown now" in answer.text) == (200, True)

    def find(_: Any, __: Any, post_ids: list[int]) -> list[tuple[int, ...] | None]:
        return [(10, 11, 9999, 12, 13, 14) if post == 10 else None for post in post_ids]

    monkeypatch.setattr("demo.network_app.similar.similar_posts.find", find)
    for post in ("10", "12", "20"):
        assert send(anna, "/like", post=post)[0] == 303
    page = anna.get("/liked").text
    assert re.findall(r'name="post" value="(\d+)"', page) == ["20", "12", "10"]
    assert re.findall(r'data-similar="(\d+)"', page) == ["11", "13", "14"]  # neither liked nor gone
    assert "Similar posts are missing" in page


SCRIPT = (
    "import json, sys, time; user, post = sys.argv[1:]; "
    "print('error: no such post, says hunter2hunter2', file=sys.stderr) if post == '2' else None; "
    "time.sleep(60) if post == '3' else None; print(json.dumps({'post': post})); sys.exit(post == '2')"
)


def test_one_explanation_at_a_time() -> None:
    explanations = Explanations(["hunter2hunter2"], (sys.executable, "-c", SCRIPT))
    explanations.start(1, 1)
    wait_until(lambda: not explanations.find(1, 1).running)  # type: ignore[union-attr]
    first = explanations.find(1, 1)
    assert first is not None
    assert (first.answer, first.problem) == ({"post": "1"}, "")
    explanations.start(1, 1)
    assert explanations.find(1, 1) == first  # it is kept
    explanations.start(1, 2)
    wait_until(lambda: not explanations.find(1, 2).running)  # type: ignore[union-attr]
    failed = explanations.find(1, 2)
    assert failed is not None
    assert (failed.answer, failed.problem) == (None, "no such post, says ***")
    explanations.start(1, 3)
    with pytest.raises(BusyError):
        explanations.start(2, 1)
    explanations.start(1, 3)  # it runs already
    began = time.monotonic()
    explanations.close()
    wait_until(lambda: not explanations.find(1, 3).running)  # type: ignore[union-attr]
    assert time.monotonic() - began < 50  # its process was ended
    explanations.start(2, 1)
    wait_until(lambda: not explanations.find(2, 1).running)  # type: ignore[union-attr]
    assert explanations.find(2, 1).answer == {"post": "1"}  # type: ignore[union-attr]
