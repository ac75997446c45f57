"""The console's page of a user, and why a post is in their list."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from flask.testing import FlaskClient

from batch.context import open_stores
from batch.inspection.feature_words import GROUPED, NAMED
from batch.inspection.user_profile import Interaction, count_interactions, read_interactions, read_user
from console.context import EXTENSION
from console.jobs import EXPLAIN, BusyError, JobRecord, Jobs
from contract.ids import IdKind, IdKinds
from contract.keys import Keys
from contract.settings import Settings
from tests.support.batch import change_ids, execute, make_network, query
from tests.support.console import SAME_ORIGIN, confirm, open_console
from tests.support.operators import LiveNetwork

pytest_plugins = ("tests.support.operators_fixtures",)

KEYS = Keys()
KINDS = [
    IdKinds(),
    IdKinds(IdKind.UUID, IdKind.TEXT),
    IdKinds(IdKind.TEXT, IdKind.UUID),
]
UNKNOWN = {
    IdKind.NUMBER: "999999",
    IdKind.UUID: "0d5ee3b5-9d7c-4d36-8a2c-6f0a3a3c8a11",
    IdKind.TEXT: "no/one",
}
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def client(night: LiveNetwork) -> Iterator[FlaskClient]:
    """Client of a console over the night."""
    with open_console(night.settings) as client:
        yield client


def page_of(client: FlaskClient, address: str, status: int = 200) -> str:
    """Return the text of a page."""
    answer = client.get(address)
    assert answer.status_code == status, answer.text
    return answer.text


def rows_of(client: FlaskClient, name: str, **arguments: str) -> dict[str, Any]:
    """Return a table as JSON."""
    answer = client.get(f"/tables/{name}.json", query_string=arguments)
    assert answer.status_code == 200, answer.text
    return dict(answer.get_json())


def posts_of(page: str) -> list[str]:
    """Return the ids of the posts of a page's list, in its order."""
    return re.findall('<tr data-post="([^"]*)"', page)


def test_the_page_has_the_list_that_lookup_shows(night: LiveNetwork, client: FlaskClient) -> None:
    found = night.run_json("lookup", "7")
    first, second = (str(post["post_id"]) for post in found["posts"][:2])
    night.client.sadd(KEYS.blocked, first)
    night.client.sadd(KEYS.gone, second)
    night.client.hset(KEYS.posts, first, json.dumps({"text": SCRIPT, "topic": "sport"}))
    found, page = night.run_json("lookup", "7"), page_of(client, "/users/7")
    assert posts_of(page) == [str(post["post_id"]) for post in found["posts"]]
    assert found["run_id"] in page
    assert page.count("blocked: not served") == page.count("gone: not served") == 1
    assert SCRIPT not in page
    assert "&lt;script&gt;alert(1)" in page
    ((city, age),) = query(night.database_url, "SELECT city, age FROM recs.users WHERE user_id = 7")
    assert f"<dd>{city}</dd>" in page
    assert f"<dd>{age}</dd>" in page
    rows = rows_of(client, "user-list", id="7")["rows"]
    fields = ("rank", "post_id", "score", "topic", "blocked", "gone")
    assert [[row[name] for name in fields] for row in rows] == [
        [post[name] for name in fields] for post in found["posts"]
    ]
    assert page.count(">Block</a>") == len(found["posts"]) - 2
    with open_console(night.settings, read_only=True) as reading:
        read = page_of(reading, "/users/7")
    assert posts_of(read) == posts_of(page)
    assert "/actions/" not in read
    assert set(re.findall('<form[^>]*method="post" action="([^"]*)"', read)) <= {"/why", "/sign-out"}
    document = client.get("/user-data?id=7").get_json()
    assert (document["columns"]["city"], document["columns"]["age"]) == (city, age)
    assert {run_id[-4:] for run_id in document["lists"]} == {"trol", "test"}
    assert document["lists"][found["run_id"]]["posts"][0]["post_id"] == found["posts"][0]["post_id"]


def test_a_comparison_has_the_changes_that_diff_shows(night: LiveNetwork, client: FlaskClient) -> None:
    found = night.run_json("diff", "7", "control", "test")
    page = page_of(client, "/users/7?a=control&b=test")
    shown = re.findall('<tr data-post="([^"]*)" data-change="([^"]*)"', page)
    assert shown == [(str(row["post_id"]), row["change"]) for row in found["changes"]]
    assert f"overlap@5 is <strong>{found['overlap_at_5']}</strong>" in page
    assert {"in", "out"} < {change for _, change in shown}
    rows = rows_of(client, "user-comparison", id="7", a="control", b="test")["rows"]
    assert [{name: row[name] for name in found["changes"][0]} for row in rows] == found["changes"]
    assert "is neither a variant nor" not in page
    assert "no longer kept, or never existed" in page_of(client, "/users/7?a=20200101T000000Z-test&b=test")
    assert "Not read: " in page_of(client, "/users/7?run=latest")


def test_a_run_that_is_not_live_is_shown_beside(night: LiveNetwork, client: FlaskClient) -> None:
    run_id = night.run_of("test")
    page = page_of(client, f"/users/7?run={run_id}")
    assert f'<option value="{run_id}" selected>' in page
    assert posts_of(page) == posts_of(page_of(client, "/users/7?run=test"))
    ranked = night.run_json("diff", "7", "control", "test")["changes"]
    assert posts_of(page) == [str(row["post_id"]) for row in ranked if row["rank_b"] is not None]


def test_a_long_list_begins_with_20_posts_and_goes_on_by_50(night: LiveNetwork, client: FlaskClient) -> None:
    ranked = [[post_id, 119.12799999999999] for post_id in range(1000, 1075)]
    night.client.set(KEYS.user(night.run_of("test"), 7), json.dumps(ranked))
    found, address = [], "/users/7?run=test"
    for begin, end in ((1, 20), (21, 70), (71, 75)):
        page = page_of(client, address)
        assert f"Posts {begin} to {end} of 75, best first" in page
        found.append(posts_of(page))
        more = re.search('<a rel="next" href="([^"]*)">Next 50', page)
        address = more[1].replace("&amp;", "&") if more else ""
    assert (address, [len(posts) for posts in found]) == ("", [20, 50, 5])
    assert [post_id for posts in found for post_id in posts] == [str(post_id) for post_id, _ in ranked]
    rows = client.get("/tables/user-list.csv?id=7&run=test").text.splitlines()
    assert len(rows) == 51
    assert rows[1].startswith("1,1000,")
    assert ",119.128," in rows[1]
    why = page_of(client, "/why?user=7&run=test&post=1001")
    assert f'href="/runs/{night.run_of("test")}"' in why
    assert 'href="/runs/test"' not in why


def test_what_a_user_did_is_paged_by_its_own_last_row(night: LiveNetwork, client: FlaskClient) -> None:
    ((user,),) = query(
        night.database_url, "SELECT user_id FROM recs.interactions GROUP BY 1 ORDER BY count(*) DESC LIMIT 1"
    )
    wanted = query(
        night.database_url,
        f"SELECT happened_at, post_id, action FROM recs.interactions WHERE user_id = {user} "
        "ORDER BY 1 DESC, 2 DESC, 3 DESC",
    )
    found: list[Mapping[str, Any]] = []
    arguments = {"id": str(user)}
    while arguments:
        table = rows_of(client, "user-interactions", **arguments)
        found += table["rows"]
        arguments = table["more"]
    assert len(wanted) > 50
    assert [
        (datetime.fromisoformat(row["happened_at"]), row["post_id"], row["action"]) for row in found
    ] == wanted
    older = re.search('href="([^"]*before=[^"]*)#history"', page_of(client, f"/users/{user}?run=test"))
    assert older is not None
    page = page_of(client, older[1].replace("&amp;", "&"))
    assert "run=test" in older[1]
    assert page.count('<td class="time">') == min(len(wanted) - 20, 50)
    likes = query(
        night.database_url,
        "SELECT topic, count(DISTINCT post_id) FROM recs.interactions JOIN recs.posts USING (post_id) "
        f"WHERE user_id = {user} AND action = 'like' GROUP BY 1",
    )
    topics = {row["topic"]: row["likes"] for row in rows_of(client, "user-topics", id=str(user))["rows"]}
    assert topics == dict(likes)
    assert f"{sum(topics.values())} posts liked" in page
    assert all(f">{topic}</text>" in page for topic in topics)


def test_an_unknown_user_gets_popular_posts_and_a_wrong_id_is_refused(client: FlaskClient) -> None:
    page = page_of(client, "/users/999999")
    assert "recs.users has no user 999999" in page
    assert "popular posts, not a list of their own: the run has no list of this user" in page
    assert "Why?" not in page
    for address in (
        "/users/abc",
        "/users?id=-1",
        "/user-data?id=",
        "/why?user=7&post=x",
        "/why?user=x&post=1",
    ):
        assert "must be a whole number from 0 to" in page_of(client, address, 400)
    assert page_of(client, "/users/7?before=yesterday", 404)
    assert client.get("/tables/user-interactions.csv?id=7&before=x").status_code == 404
    assert 'name="id"' in page_of(client, "/users")


def test_a_page_says_what_cannot_be_read(night: LiveNetwork) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    with open_console(night.settings.replace(database_url=nowhere)) as client:
        page = page_of(client, "/users/7")
        assert len(posts_of(page)) == 10
        assert page.count("Not read: ") >= 3
        night.client.flushall()
        again = page_of(client, "/users/7")
        assert posts_of(again) == posts_of(page)
        assert "The figures are those of" in again
        assert "Variant, run and list are those of" in again
        assert "Variant, run and list are those of" not in page
        assert client.get("/users/8").status_code == 200


def test_without_redis_a_user_is_shown_all_the_same(night: LiveNetwork) -> None:
    with open_console(night.settings.replace(redis_url="redis://127.0.0.1:1/0")) as client:
        page = page_of(client, "/users/7")
        assert "<dt>city</dt>" in page
        assert posts_of(page) == []
        assert page.count("Not read: ") == 1
        assert page_of(client, "/users/abc", 400)


class FakeJobs(Jobs):
    """Jobs that do not run; `records` are the answers to come."""

    def __init__(self, settings: Settings) -> None:
        self.asked: list[Mapping[str, Any]] = []
        self.record = JobRecord("1", EXPLAIN, "anna", datetime.now(UTC))
        self.busy = False

    def start(
        self, kind: str, arguments: Mapping[str, Any], actor: str, reason: str | None = None
    ) -> JobRecord:
        if self.busy:
            raise BusyError("2 jobs that only read run already")
        assert (kind, actor) == (EXPLAIN, "anna")
        self.asked.append(arguments)
        self.record = replace(self.record, arguments=arguments)
        return self.record

    def latest(self, kind: str, arguments: Mapping[str, Any]) -> JobRecord | None:
        return self.record if self.record.arguments == arguments else None

    def end(self, **values: Any) -> None:
        self.record = replace(self.record, ended_at=datetime.now(UTC), **values)


def test_one_job_explains_the_page_and_the_second_click_is_answered_from_it(
    night: LiveNetwork, client: FlaskClient
) -> None:
    app = client.application
    jobs = FakeJobs(night.settings)
    app.extensions[EXTENSION] = replace(app.extensions[EXTENSION], jobs=jobs)
    found = night.run_json("lookup", "7")
    posts = [str(post["post_id"]) for post in found["posts"]]
    form = {"user": "7", "run": found["run_id"], "from": "1", "post": posts[1]}
    address = f"/why?user=7&run={found['run_id']}&post="
    assert "Nobody has asked yet" in page_of(client, address + posts[1])
    assert client.post("/why", data=form).status_code == 403
    started = client.post("/why", data=form, headers=SAME_ORIGIN)
    assert (started.status_code, started.location) == (303, address + posts[1])
    assert jobs.asked == [{"user": "7", "run": found["run_id"], "posts": posts}]
    assert 'id="explanation" hx-get=""' in page_of(client, address + posts[1])
    assert (
        client.get(f"/tables/score-parts.json?user=7&run={found['run_id']}&post={posts[1]}").status_code
        == 404
    )

    explanations = night.run_json("explain", "7", *posts, "--run", found["run_id"])
    jobs.end(exit_code=0, meaning="done", output=explanations)
    assert client.post("/why", data=form, headers=SAME_ORIGIN).status_code == 303
    assert len(jobs.asked) == 1
    for post, explanation in zip(posts, explanations, strict=True):
        page = page_of(client, address + post)
        shown = [float(text) for text in re.findall(r'class="value">([-+][0-9.]+)</text>', page)]
        assert sum(shown) == pytest.approx(explanation["score"], abs=1e-3)
        assert f'data-score="{explanation["score"]}"' in page
        assert "hx-get" not in page
    table = rows_of(client, "score-parts", user="7", run=found["run_id"], post=posts[0])["rows"]
    assert sum(row["contribution"] for row in table) == pytest.approx(explanations[0]["score"])
    page = page_of(client, "/users/7")
    assert page.count('class="reasons"') == len(posts)
    assert 'name="post" value' not in page  # links in place of buttons
    columns = {"user_age", "user_city", "user_subscribed", "post_topic"}
    for part in explanations[0]["contributions"]:
        named = part["feature"] in NAMED or any(each.fullmatch(part["feature"]) for each in GROUPED)
        assert named or part["kind"] == "affinity" or part["feature"] in columns, part["feature"]

    jobs.busy = True
    busy = client.post("/why", data=form | {"again": "1"}, headers=SAME_ORIGIN)
    assert busy.status_code == 503
    assert "Not started: 2 jobs that only read run already" in busy.text
    jobs.busy = False
    client.post("/why", data=form | {"again": "1", "post": "99999"}, headers=SAME_ORIGIN)
    assert jobs.asked[-1]["posts"] == ["99999"]
    jobs.end(exit_code=1, meaning="failed", output=None, log="the network has no post 99999; check the id")
    failed = page_of(client, f"{address}99999")
    assert "The explanation failed: failed." in failed
    assert "the network has no post 99999" in failed
    jobs.end(output=[{"post_id": 99999, "error": "the network has no post 99999; check the id"}])
    assert "the network has no post 99999; check the id." in page_of(client, f"{address}99999")


@pytest.mark.parametrize("kinds", KINDS, ids=str)
def test_users_and_posts_have_ids_of_any_kind(
    kinds: IdKinds, database_url: str, redis_client: redis.Redis, redis_url: str
) -> None:
    make_network(database_url, posts=30)
    change_ids(database_url, kinds)
    settings = Settings.of(database_url=database_url, redis_url=redis_url)
    counted = "SELECT user_id::text, count(*) FROM recs.interactions GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 1"
    ((user, count),) = query(database_url, counted)
    user_id = int(user) if kinds.users is IdKind.NUMBER else user
    posts = "SELECT post_id FROM recs.posts LIMIT 3"
    listed = [post if kinds.posts is IdKind.NUMBER else str(post) for (post,) in query(database_url, posts)]
    own = f"FROM recs.interactions WHERE user_id::text = '{user.replace(chr(39), chr(39) * 2)}'"
    execute(
        database_url,
        f"INSERT INTO recs.interactions SELECT user_id, post_id, action, now() {own}",  # at one time
        "INSERT INTO recs.interactions SELECT user_id, post_id, 'unlike', now() "
        f"{own} AND action = 'like' ORDER BY post_id LIMIT 1",
        f"INSERT INTO recs.interactions SELECT user_id, post_id, action, 'infinity' {own} "
        "AND happened_at < '2022-01-01' GROUP BY 1, 2, 3 LIMIT 5",
    )
    with open_stores(settings, "test") as stores:
        page = read_interactions(stores, user_id, 1000)
        ((distinct,),) = query(database_url, f"SELECT count(*) FROM (SELECT DISTINCT * {own}) AS rows")
        assert len(page) == distinct - 5 > 100
        assert page[0].action == "unlike"
        found: list[Interaction] = []
        while more := read_interactions(stores, user_id, 40, found[-1] if found else None):
            found += more
        assert found == page
        assert {each.topic for each in page} <= {"business", "covid", "movie", "sport"}
        counts = count_interactions(stores, user_id)
        assert counts.counted == 2 * count + 1
        liked = {each.post_id for each in page if each.action == "like"} - {page[0].post_id}
        assert counts.likes == len(liked) == sum(likes for _, likes in counts.topics)
        row = read_user(stores, user_id)
        assert row is not None
        assert row["user_id"] == user_id
    run_id = "20211101T030000Z-control"
    manifest = {"run_id": run_id, "cutoff": "2021-11-01T03:00:00+00:00", "ids": kinds.to_record(), "top_n": 3}
    redis_client.set(KEYS.live("control"), run_id)
    redis_client.set(KEYS.manifest(run_id), json.dumps(manifest))
    redis_client.set(
        KEYS.user(run_id, user_id),
        json.dumps([[str(post) if kinds.posts is not IdKind.NUMBER else post, 1.5] for post in listed]),
    )
    with open_console(settings) as client:
        text = client.get("/users", query_string={"id": user}).text
        assert text.count("<tr data-post=") == 3
        assert text.count('<td class="time">') == 20
        for address in re.findall('href="(/users[^"]*)"', text):
            answer = client.get(address.replace("&amp;", "&").replace("&#34;", '"'))
            assert answer.status_code == 200
            assert "<h1>User " in answer.text
        unknown = client.get("/users", query_string={"id": UNKNOWN[kinds.users]}).text
        assert "the run has no list of this user" in unknown


def test_blanks_around_an_id_are_part_of_it_if_it_is_text(
    database_url: str, redis_client: redis.Redis, redis_url: str
) -> None:
    make_network(database_url, users=20, posts=5, interactions=20)
    settings = Settings.of(database_url=database_url, redis_url=redis_url)
    with open_console(settings) as client:
        assert "<h1>User 7</h1>" in page_of(client, "/users?id=+7+")
        assert confirm(client, "block", "a number", post=" 101 ").status_code == 200
        assert redis_client.smembers(KEYS.blocked) == {"101"}
        assert confirm(client, "unblock", "over", post="101 ").status_code == 200
    change_ids(database_url, IdKinds(IdKind.TEXT, IdKind.TEXT))
    ids = (" a", "a", "a ", "b")
    for each in ids:
        execute(
            database_url,
            f"INSERT INTO recs.users VALUES ('{each}', 30, 'city of <{each}>', true)",
            f"INSERT INTO recs.posts VALUES ('{each}', 'sport', 'text of <{each}>', now())",
        )
    with open_console(settings) as client:
        for each in ids:
            address = {"query_string": {"id": each}}
            assert f"city of &lt;{each}&gt;" in client.get("/users", **address).text
            assert f"text of &lt;{each}&gt;" in client.get("/posts", **address).text
            assert client.get("/user-data", **address).get_json()["user_id"] == each
            why = client.get("/why", query_string={"user": each, "post": each}).text
            found = client.get("/search", query_string={"q": each}).text
            after = f"?id={each.replace(' ', '+')}" if " " in each else f"/{each}"
            for page in (why, found):
                assert {f"/users{after}", f"/posts{after}"} <= set(re.findall('href="([^"]*)"', page))
            assert confirm(client, "block", "of text", post=each).status_code == 200
            assert redis_client.smembers(KEYS.blocked) == {each}
            assert confirm(client, "unblock", "over", post=each).status_code == 200
            assert redis_client.smembers(KEYS.blocked) == set()
        assert "city of &lt;b&gt;" in client.get("/search", query_string={"q": " b "}).text
