"""Pages of posts, search and data: what they show is what Postgres, Redis and the manifests have."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from datetime import date, timedelta
from html import unescape
from typing import Any

import pytest
from flask.testing import FlaskClient

from batch.inspection import posts
from contract.keys import Keys
from tests.support.batch import execute, live_lists, query
from tests.support.console import confirm, open_console, read_form
from tests.support.operators import TOP_N, LiveNetwork

pytest_plugins = ("tests.support.operators_fixtures",)

KEYS = Keys()
HOSTILE = "<script>alert(1)</script>\n  'two' & \"three\" 100%_\u202e"


def table(client: FlaskClient, name: str, **arguments: Any) -> dict[str, Any]:
    """Return a table as JSON, and check that its CSV has the same rows."""
    answer = client.get(f"/tables/{name}.json", query_string=arguments)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = json.loads(answer.text)
    rows = list(csv.DictReader(io.StringIO(client.get(f"/tables/{name}.csv", query_string=arguments).text)))
    assert len(rows) == len(found["rows"])
    return found


def test_posts_are_listed_by_time_by_words_and_by_topic_a_page_of_50(spoilt: LiveNetwork) -> None:
    execute(
        spoilt.database_url,
        "UPDATE recs.posts SET created_at = timestamptz '2026-01-01' + (post_id % 7) * interval '1 day'",
        "INSERT INTO recs.posts (post_id, topic, text, created_at) "
        "SELECT id, 'many', 'A_b ' || id, 'infinity' FROM generate_series(9001, 9060) AS id",
        "UPDATE recs.posts SET created_at = NULL WHERE post_id BETWEEN 9050 AND 9060",
    )
    wanted = [
        post_id
        for (post_id,) in query(
            spoilt.database_url,
            "SELECT post_id FROM recs.posts ORDER BY created_at DESC NULLS LAST, post_id DESC",
        )
    ]
    with open_console(spoilt.settings) as client:
        listed, arguments = [], {}
        while arguments is not None:
            page = table(client, "posts", **arguments)
            listed.append([row["post_id"] for row in page["rows"]])
            arguments = page["more"]
        assert [post for page in listed for post in page] == wanted
        assert [len(page) for page in listed] == [50, 50]
        found = table(client, "posts", q="A_B 90", topic="many")
        assert len(found["rows"]) == 50
        assert [row["post_id"] for row in table(client, "posts", q="a_b 9001")["rows"]] == [9001]
        assert table(client, "posts", q="a%b")["rows"] == table(client, "posts", q="\\")["rows"] == []
        long = "q=" + "x" * 9000
        assert client.get(f"/posts?{long}").status_code == client.get(f"/search?{long}").status_code == 200
        for odd in ("after=x", "after=1&after_time=x"):
            assert client.get(f"/posts?{odd}").status_code == 404
            assert client.get(f"/tables/posts.csv?{odd}").status_code == 404
        assert client.get("/posts?show=blocked&after=1&after_time=x").status_code == 404
        assert client.get("/tables/posts.csv?show=blocked&after=1&after_time=x").status_code == 404
        text = client.get("/posts?q=A_b&topic=many").text
        assert 'rel="next"' in text
        assert "Newest posts with &#34;A_b&#34; of topic many" in text


def test_the_page_of_a_post_shows_its_text_its_days_its_likes_and_who_gets_it(
    spoilt: LiveNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = spoilt.run_of("control")
    manifest = json.loads(str(spoilt.client.get(KEYS.manifest(run_id))))
    post, lists = manifest["first_fives"][0]
    stored = json.loads(str(spoilt.client.get(KEYS.post(run_id, post))))
    execute(
        spoilt.database_url,
        "ALTER TABLE recs.posts ADD author_id bigint",
        f"UPDATE recs.posts SET text = $${HOSTILE}$$, author_id = 7 WHERE post_id = {post}",
    )
    views, likes = query(
        spoilt.database_url,
        "SELECT count(*) FILTER (WHERE action = 'view'), count(*) FILTER (WHERE action = 'like') "
        f"FROM recs.interactions WHERE post_id = {post}",
    )[0]
    with open_console(spoilt.settings) as client:
        text = client.get(f"/posts/{post}").text
        assert "<script>alert" not in text
        shown = HOSTILE.replace("\u202e", "\\u202e")
        assert shown in unescape(text)
        assert '<a href="/users/7">user 7</a>' in text
        assert f"control: in {lists:,} of {manifest['users']:,} first fives" in text
        days = table(client, "post-days", id=post)["rows"]
        assert (sum(row["views"] for row in days), sum(row["likes"] for row in days)) == (views, likes)
        assert f"{views:,} views and {likes:,} likes from" in text
        dates = [date.fromisoformat(row["day"]) for row in days]
        assert dates == [dates[0] - timedelta(days=ago) for ago in range(len(days))]
        monkeypatch.setattr(posts, "MAX_COST", 0)
        found = client.get(f"/posts/{post}").text
        assert "an index on (post_id, happened_at) of the interactions" in found
        assert "Similar posts" in found
        similar = table(client, "post-similar", id=post, variant="control")["rows"]
        assert [[row["post_id"], row["similarity"]] for row in similar] == stored
        counted = Counter(listed for ranked in live_lists(spoilt.client).values() for listed, _ in ranked[:5])
        heads = table(client, "first-fives", run=run_id)["rows"]
        assert {row["post_id"]: row["lists"] for row in heads} == counted
        assert max(row["share"] for row in heads) == lists / manifest["users"]
        liked = table(client, "posts", show="liked")["rows"]
        popular = json.loads(str(spoilt.client.get(KEYS.popular(spoilt.run_of("test")))))
        assert [[row["post_id"], row["likes"]] for row in liked] == popular
        assert len(popular) == TOP_N
        for wrong, status in (("nobody", 400), ("987654321", 404)):
            assert client.get(f"/posts/{wrong}").status_code == status
        assert client.get(f"/tables/post-similar.json?id={post}&variant=x").status_code == 404


def test_an_operator_blocks_and_unblocks_and_the_page_has_the_story(spoilt: LiveNetwork) -> None:
    run_id = spoilt.run_of("control")
    post, lists = json.loads(str(spoilt.client.get(KEYS.manifest(run_id))))["first_fives"][0]
    with open_console(spoilt.settings) as client:
        text, _ = read_form(client, "block", post=str(post))
        assert f"No answer of serving has post {post} any more, within 1 s" in text
        assert f"control: in {lists:,} of" in text
        assert confirm(client, "block", "<b>spam</b>", post=str(post)).status_code == 200
        assert spoilt.client.smembers(KEYS.blocked) == {str(post)}
        text = client.get(f"/posts/{post}").text
        assert "<strong>Blocked</strong>" in text
        assert "&lt;b&gt;spam&lt;/b&gt;" in text
        assert "console by anna@" in text
        (row,) = table(client, "posts", show="blocked")["rows"]
        assert (row["post_id"], row["reason"]) == (str(post), "<b>spam</b>")
        marked = [each["post_id"] for each in table(client, "posts")["rows"] if each.get("blocked")]
        assert marked == [post]
        again = confirm(client, "block", "twice", post=str(post))
        assert f"Post {post} was blocked already by console by anna@" in again.text
        spoilt.client.delete(KEYS.blocked)
        assert "Redis lacks the block" in client.get(f"/posts/{post}").text
        assert confirm(client, "unblock", "an error", post=str(post)).status_code == 200
        (ended,) = table(client, "post-blocks", id=post)["rows"]
        assert (ended["reason"], ended["unblock_reason"]) == ("<b>spam</b>", "an error")
        execute(
            spoilt.database_url,
            "INSERT INTO recs.blocked_posts SELECT 'recs', id::text, now(), 'x', 'spam' "
            "FROM generate_series(9001, 9060) AS id",
        )
        page = table(client, "posts", show="blocked")
        rows = page["rows"] + table(client, "posts", **page["more"])["rows"]
        assert [int(row["post_id"]) for row in rows] == list(range(9060, 9000, -1))
        spoilt.client.sadd(KEYS.blocked, 101)
        assert "Blocked in Redis only" in client.get("/posts/101").text
        assert "give the id of a post" in client.get("/actions/block?post=nobody").text
        assert "Id of the post" in client.get("/actions/block").text
    with open_console(spoilt.settings, read_only=True) as client:
        assert "/actions/" not in client.get(f"/posts/{post}").text + client.get("/posts").text


def test_search_finds_users_posts_runs_and_words(spoilt: LiveNetwork) -> None:
    run_id = spoilt.run_of("test")
    execute(
        spoilt.database_url,
        "UPDATE recs.posts SET text = 'number 60 <b>' WHERE post_id = 101",
        "DELETE FROM recs.posts WHERE text IS NULL",
    )
    with open_console(spoilt.settings) as client:
        text = client.get("/search?q=60").text
        assert 'User <a href="/users/60">60</a>' in text
        assert '<a href="/posts/101">101</a>' in text
        assert "number 60 &lt;b&gt;" in text
        for words, url in ((run_id, f"/runs/{run_id}"), ("102", "/posts/102")):
            answer = client.get("/search", query_string={"q": words})
            assert (answer.status_code, answer.location) == (302, url)
        assert "No user, post or run has this id." in client.get("/search?q=987654321987").text
        assert "No post has all of these words" in client.get("/search?q=number+nowhere").text
        assert "<script" not in client.get("/search?q=<script>").text.split("<main")[1]
        assert client.get("/search").status_code == 200


def test_the_page_of_data_has_columns_rows_left_out_and_topics(spoilt: LiveNetwork) -> None:
    execute(
        spoilt.database_url,
        "UPDATE recs.runs SET manifest = jsonb_set(manifest, '{left_out,in_the_future}', '4321')"
        "WHERE variant = 'test'",
        'ALTER TABLE recs.users ADD "odd "" %s :name" text',
    )
    users, topics = (
        query(spoilt.database_url, f"SELECT {fields} FROM recs.{view}")[0][0]
        for view, fields in (("users", "count(*)"), ("posts", "count(DISTINCT topic)"))
    )
    with open_console(spoilt.settings.replace(ignore_columns="users.age")) as client:
        columns = {(row["view"], row["column"]): row for row in table(client, "view-columns")["rows"]}
        odd = columns["users", 'odd " %s :name']
        assert (odd["use"], odd["missing"], odd["share"]) == ("attribute", users, 1)
        assert columns["interactions", "happened_at"]["use"] == "required"
        assert columns["posts", "topic"]["use"] == "known"
        left_out = {row["run_id"]: row["in_the_future"] for row in table(client, "left-out")["rows"]}
        assert left_out == {spoilt.run_of("test"): 4321, spoilt.run_of("control"): 0}
        assert len(table(client, "topics")["rows"]) >= topics > 1
        text = client.get("/data").text
        assert "4,321" in text
        regions = re.findall('aria-label="([^"]*)"', text)
        assert len(regions) == len(set(regions)) >= 5
        assert "Not read" not in text
        run_id = spoilt.run_of("test")
        assert client.get("/data?before=x").status_code == client.get("/data?run=x").status_code == 404
        assert f"/data?run={run_id}#first-fives" in client.get(f"/runs/{run_id}").text
        rows = table(client, "first-fives", run=run_id)["rows"]
        assert client.get(f"/data?run={run_id}").text.count('"/posts/') == len(rows) > 10


def test_pages_of_posts_stay_when_redis_or_postgres_is_down(spoilt: LiveNetwork) -> None:
    def kill(name: str) -> None:
        execute(spoilt.database_url, f"ALTER TABLE recs.{name} RENAME TO {name}_gone")

    with open_console(spoilt.settings) as client:
        before = client.get("/posts/101").text
        assert "Not read" not in before
        kill("posts")
        text = client.get("/posts/101").text
        assert "Not read" in text
        assert "The figures are those of" in text
        kill("interactions")
        spoilt.client.set(KEYS.experiment, "x")
        spoilt.client.rename(KEYS.posts, "recs:elsewhere")
        spoilt.client.set(KEYS.posts, "no hash")
        text = client.get("/posts/101").text
        assert text.count("Not read") > 2
        assert "Similar posts" in text
