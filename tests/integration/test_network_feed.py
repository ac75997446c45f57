"""The feed of the demo's network without a browser: which cards a page has, and what the strip says."""

from __future__ import annotations

import re
from pathlib import Path
from unittest.mock import patch

from demo.network_app import serving
from demo.network_app.pages.feed import BUTTON
from demo.simulate import simulate
from tests.support.batch import execute, query
from tests.support.network_client import SAME_ORIGIN, open_network_app, register

CARD = re.compile(r'<article class="card" data-post="([^"]*)"')
MORE = re.compile(r'rel="next" href="([^"]*)"')


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
