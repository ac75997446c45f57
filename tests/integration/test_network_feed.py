"""The feed of the demo's network without a browser: which cards a page has, and what the strip says."""

from __future__ import annotations

import re
import socket
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

import pytest
from flask import Flask
from flask.testing import FlaskClient

from batch.refresh import stale_users
from batch.runs import ledger
from demo.network_app import serving
from demo.network_app.context import EXTENSION
from demo.network_app.pages.feed import BUTTON
from demo.network_app.refresh_button import Outcome
from demo.simulate import simulate
from tests.support.batch import execute, query
from tests.support.network_client import SAME_ORIGIN, answer_posts, open_network_app, register

RUN = "20260101T000000Z-control"
LIMITED, UNLIMITED = (f'{{"users": {users}, "users_of_network": 40}}' for users in (10, 40))
CARD = re.compile(r'<article class="card" data-post="([^"]*)"')
EXPLORED = "new: shown to learn who likes it"
TO_OLD_RECORD = """
    UPDATE shown_list SET list = jsonb_set(list - 'stale', '{posts}',
        (SELECT jsonb_agg(post - 3) FROM jsonb_array_elements(list -> 'posts') AS post))
"""
MORE = re.compile(r'rel="next" href="([^"]*)"')


def find_strip(page: str) -> str:
    """Return the address that the strip of a page asks for."""
    return page[page.index('<section id="strip"') :].partition('hx-get="')[2].partition('"')[0]


def look_as(app: Flask, user_id: int) -> FlaskClient:
    """Look at the network as somebody who was there before."""
    client = app.test_client()
    assert client.post("/look", data={"user": user_id}, headers=SAME_ORIGIN).location == "/"
    return client


def test_pages_of_the_feed(database_url: str, tmp_path: Path) -> None:
    simulate(database_url, 40, 40, 600, seed=1)
    posts = [post for (post,) in query(database_url, "SELECT id FROM post ORDER BY id")][:30]
    listed = [*posts, 987_654]  # the last one is gone from the network
    with open_network_app(database_url, tmp_path, *listed) as app:
        client = register(app, "Anna")
        user = query(database_url, "SELECT user_id FROM account")[0][0]
        execute(database_url, f"UPDATE post SET author_id = {user} WHERE id = {posts[0]}")
        client.post("/like", data={"post": posts[1]}, headers=SAME_ORIGIN)

        first = client.get("/").text
        assert CARD.findall(first) == [str(post) for post in posts[2:12]]
        assert "No run is live." in first
        more = MORE.search(first)
        assert more is not None
        link = more[1].replace("&amp;", "&")
        assert client.get(link, headers={"HX-Request": "true"}).text.lstrip().startswith("<article")
        # What is liked meanwhile, or seen in this visit, moves nothing.
        client.post("/like", data={"post": posts[3]}, headers=SAME_ORIGIN)
        client.post("/seen", data={"post": posts[12:14]}, headers=SAME_ORIGIN)
        second = client.get(link).text
        assert CARD.findall(second) == [str(post) for post in posts[12:22]]
        last = client.get(MORE.search(second)[1].replace("&amp;", "&")).text  # type: ignore[index]
        assert CARD.findall(last) == [str(post) for post in posts[22:]]
        assert MORE.search(last) is None
        assert "This is the end of your list" in last

        # In another visit, what was seen comes last.
        execute(database_url, "UPDATE activity SET visit = gen_random_uuid()")
        again = client.get("/").text
        assert CARD.findall(again)[:9] == [str(post) for post in (posts[2], *posts[4:12])]
        pages = [client.get(link.replace("rank=12", f"rank={rank}")).text for rank in (12, 22)]
        assert CARD.findall(pages[1])[-2:] == [str(post) for post in posts[12:14]]

        # A link of a list that is no longer known, and nonsense.
        assert "made anew twice or more" in client.get("/?list=0123&seen=0&rank=3").text
        assert client.get("/?list=0123&seen=0&rank=x").status_code == 404
        assert client.get("/?list=0123").status_code == 400
        assert client.post("/seen", data={"post": ["x"]}, headers=SAME_ORIGIN).status_code == 404
        assert client.post("/seen", data={"post": posts * 4}, headers=SAME_ORIGIN).status_code == 413

        with patch.object(serving, "http_get", side_effect=ConnectionRefusedError("refused")):
            answer = client.get("/")
        assert answer.status_code == 503
        assert "serving does not answer" in answer.text
        assert "Nothing you did is lost" in answer.text

    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        patch.object(serving, "ANSWER_SECONDS", 0.1),
        pytest.raises(serving.ServingError, match="serving does not answer"),
    ):
        serving.read_recommendations(f"http://127.0.0.1:{silent.getsockname()[1]}", posts[0], 10)


def test_the_strip(database_url: str, tmp_path: Path) -> None:
    simulate(database_url, 40, 40, 600, seed=1)
    posts = [post for (post,) in query(database_url, "SELECT id FROM post ORDER BY id")][:15]
    with open_network_app(database_url, tmp_path, *posts) as app:
        engine = app.extensions[EXTENSION].engine
        ledger.create(engine)
        stale_users.create(engine)
        client = register(app, "Anna")
        user = query(database_url, "SELECT user_id FROM account")[0][0]
        execute(
            database_url,
            "INSERT INTO recs.runs (run_id, variant, key_prefix, state, started_at, actor, manifest) VALUES "
            f"('{RUN}', 'control', 'recs', 'live', now(), 'test', '{LIMITED}')",
            f"INSERT INTO recs.run_changes VALUES ('{RUN}', 'live', '2026-01-01 03:04+00', 'test', NULL)",
        )
        page = client.get("/").text
        limited = "There is no list of yours: popular posts. The last night made lists for 10 of 40 people"
        for shown in (page, client.get("/me").text):
            assert limited in shown
            for wrong in ("2026-01-01", "next refresh", "It knows", "Lists are made anew"):
                assert wrong not in shown, wrong
        strip = find_strip(page)

        client.post("/like", data={"post": posts[2]}, headers=SAME_ORIGIN)
        client.post("/seen", data={"post": posts[3:5]}, headers=SAME_ORIGIN)
        client.post("/unlike", data={"post": posts[2]}, headers=SAME_ORIGIN)
        known = client.get(strip, headers={"HX-Request": "true"}).text
        assert (
            "<strong>5 things</strong> that you did are in no list yet (1 like, 1 unlike, 3 views)" in known
        )

        # The list is made anew: two posts change places, one is replaced, one is blocked.
        execute(
            database_url,
            "INSERT INTO recs.refreshed_users (run_id, user_id, refreshed_at) VALUES "
            f"('{RUN}', {user}, clock_timestamp())",
            "INSERT INTO recs.blocked_posts (key_prefix, post_id, blocked_at, blocked_by) VALUES "
            f"('recs', '{posts[4]}', now(), 'test')",
        )
        news = client.get(strip, headers={"HX-Request": "true"}).text
        assert "Your list was made anew" in news
        assert 'href="/">Show it' in news
        new = query(database_url, f"SELECT max(id) FROM post WHERE id > {posts[-1]}")[0][0]
        changed_posts = [posts[1], posts[0], *posts[2:-1], new]
        with answer_posts(*changed_posts, source="personal", explored=2):
            for _ in range(2):  # loading the page again keeps the badges
                changed = client.get("/").text
                assert "Against the popular posts before: " in changed
                assert "1 in, 1 out, 2 moved</strong> of 15 posts" in changed
                assert "It knows all that you did." in changed
                badges = dict(re.findall(r'data-post="(\d+)".*?class="mark">([^<]*)', changed, re.DOTALL))
                assert badges[str(posts[1])] == "up 1"
                assert str(posts[4]) not in CARD.findall(changed)
                assert re.findall("new: shown to learn who likes it|it 2nd", changed) == [EXPLORED]
        # A page that was loaded before goes on with its own list, and knows that there is a newer one.
        assert client.get(strip.replace("/strip", "/") + "&seen=0&rank=10").text.count("<article") == 5
        assert "Your list was made anew" in client.get(strip, headers={"HX-Request": "true"}).text

        # Popular posts in place of a list are no change of it, nor is the list when it is back.
        for stale, why in (
            (True, "serving could not read lists from Redis"),
            (False, "serving has no list of yours"),
        ):
            with answer_posts(*posts, stale=stale):
                pages = [client.get(path).text for path in ("/", "/me")]
            assert [why in page for page in pages] == [True, True]
            assert "moved" not in pages[0]
            assert 'class="mark"' not in pages[0]
        with answer_posts(*changed_posts, source="personal"):
            back = client.get("/").text
        assert "moved" not in back
        assert "made for you" in client.get("/me").text
        execute(database_url, TO_OLD_RECORD)
        assert "by the model" in client.get(find_strip(back)).text


def test_a_newcomer_has_no_list_yet(database_url: str, tmp_path: Path) -> None:
    simulate(database_url, 40, 40, 600, seed=1)
    with open_network_app(database_url, tmp_path, 1, 2, 3) as app:
        ledger.create(app.extensions[EXTENSION].engine)
        execute(
            database_url,
            "INSERT INTO recs.runs (run_id, variant, key_prefix, state, started_at, actor, manifest) VALUES "
            f"('{RUN}', 'control', 'recs', 'live', now(), 'test', '{UNLIMITED}')",
            f"INSERT INTO recs.run_changes VALUES ('{RUN}', 'live', now(), 'test', NULL)",
        )
        client = register(app, "Anna")
        client.post("/like", data={"post": 7}, headers=SAME_ORIGIN)
        pages = [client.get(path).text for path in ("/me", "/", "/me")]
        for page in pages:
            assert "There is no list of yours yet: popular posts. The next refresh makes it." in page
            assert "Your list was made" not in page
            assert "<dt>Made</dt>" not in page

        # The night knew post 9, and not what was written since.
        client.post("/communities/new", data={"name": "Film club", "about": ""}, headers=SAME_ORIGIN)
        written = client.post("/new", data={"community": "Film club", "text": "A film"}, headers=SAME_ORIGIN)
        assert written.location is not None
        assert "There is no list of similar posts now." in client.get("/posts/9").text
        assert "They come with the next night." in client.get(written.location).text
        with answer_posts(1, 2, 3, stale=True):
            assert "serving cannot read lists from Redis" in client.get("/posts/9").text
            client.post("/like", data={"post": 9}, headers=SAME_ORIGIN)
            assert "Similar posts are missing: serving" in client.get("/liked").text
        assert "made for this person" in look_as(app, 200).get("/me").text


def test_likes_without_a_script(database_url: str, tmp_path: Path) -> None:
    simulate(database_url, 40, 40, 600, seed=1)
    posts = [post for (post,) in query(database_url, "SELECT id FROM post ORDER BY id")]
    with open_network_app(database_url, tmp_path, *posts) as app:
        client = register(app, "Anna")

        def like(came_from: str) -> str | None:
            headers = SAME_ORIGIN | {"Referer": came_from}
            answer = client.post("/like", data={"post": posts[0]}, headers=headers)
            assert answer.status_code == 303
            return answer.location

        assert like("http://localhost/c/movie?by=likes") == "http://localhost/c/movie?by=likes"
        assert like("http://localhost//elsewhere.example/") == "http://localhost/elsewhere.example/"
        assert like("http://elsewhere.example/x") == "/"
        button = client.post(
            "/unlike", data={"post": posts[0]}, headers=SAME_ORIGIN | {"HX-Request": "true"}
        ).text
        assert 'aria-pressed="false"' in button
        assert client.post("/like", data={"post": "999999"}, headers=SAME_ORIGIN).status_code == 404
        assert client.post("/like", data={"post": posts[0]}).status_code == 403

        # A refresh is started once, and recorded.
        button = app.extensions[BUTTON]
        with patch.object(button, "press", side_effect=[True, False]):
            for _ in range(2):
                assert client.post("/refresh", headers=SAME_ORIGIN).location == "/"
        assert query(database_url, "SELECT count(*) FROM activity WHERE kind = 'refresh'") == [(1,)]

        # How it ended is shown to who started it.
        with client.session_transaction() as session:
            visit = session["visit"]
        now = datetime.now(UTC)
        button.outcome = Outcome(visit, now, now, "The refresh failed: no run.")
        assert "The refresh failed: no run." in client.get("/").text
        assert "The refresh failed" not in register(app, "Ben").get("/").text
