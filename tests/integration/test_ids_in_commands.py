"""Every command on networks whose users and posts have uuids or text as ids."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
import sqlalchemy as sa
from markupsafe import escape

from contract.experiment import VARIANTS
from contract.exposures import FIELD, Exposure, encode_exposures
from contract.ids import IdKind, IdKinds, quote_id
from contract.keys import Keys
from contract.manifest import Manifest
from contract.settings import Settings
from tests.support.batch import (
    change_ids,
    execute,
    live_run,
    make_network,
    query,
    run_here,
)
from tests.support.batch_live import LiveNetwork, copy_database, copy_night, dump
from tests.support.console import confirm, open_console

KEYS = Keys()
AS_NUMBER = "('x' || substr(md5({}::text), 1, 8))::bit(32)::bigint"
UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
COLUMNS_WITH_IDS = (
    ("users", "user_id"),
    ("posts", "post_id"),
    ("interactions", "user_id"),
    ("interactions", "post_id"),
)
OUR_TABLES = ("runs", "exposures", "experiments", "refreshed_users")
KINDS = [IdKinds(IdKind.UUID, IdKind.TEXT), IdKinds(IdKind.TEXT, IdKind.UUID)]


@pytest.fixture(scope="module", params=KINDS, ids=str)
def night(
    request: pytest.FixtureRequest,
    postgres_server: sa.URL,
    valkey_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[LiveNetwork, dict[bytes, bytes]]]:
    """A night of both variants."""
    models = tmp_path_factory.mktemp("models")
    with copy_database(postgres_server) as database_url:
        make_network(database_url, posts=30)
        change_ids(database_url, request.param)
        done = run_here("run", database_url=database_url, redis_url=valkey_server, model_dir=models)
        assert done.returncode == 0, done.stderr
        try:
            yield LiveNetwork(database_url, valkey_server, models, {}, []), dump(valkey_server)
        finally:
            with redis.Redis.from_url(valkey_server) as client:
                client.flushall()  # other modules share the server


@pytest.fixture
def live(
    night: tuple[LiveNetwork, dict[bytes, bytes]], postgres_server: sa.URL, tmp_path: Path
) -> Iterator[LiveNetwork]:
    """That night over a copy of its database and files."""
    with copy_night(*night, postgres_server, tmp_path / "models") as copy:
        yield copy


@pytest.fixture
def client(live: LiveNetwork) -> Iterator[redis.Redis]:
    """Client of their Redis; decodes responses."""
    with redis.Redis.from_url(live.redis_url, decode_responses=True) as client:
        yield client


def run(live: LiveNetwork, *arguments: str, code: int = 0) -> str:
    """Run a command; return stdout, or stderr where it must fail."""
    done = live.run(*arguments)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def run_json(live: LiveNetwork, *arguments: str) -> dict[str, Any]:
    """Return what a command prints with `--json`."""
    return dict(json.loads(run(live, *arguments, "--json")))


def ids_of(live: LiveNetwork, view: str) -> list[str]:
    """Return the ids of users or posts, in the order of their characters."""
    column = {"users": "user_id", "posts": "post_id"}[view]
    return sorted(row[0] for row in query(live.database_url, f"SELECT {column}::text FROM recs.{view}"))


def given(user_or_post: str) -> str:
    """Return an id as a person may give it: a uuid in capitals and braces."""
    return f"{{{user_or_post.upper()}}}" if UUID.fullmatch(user_or_post) else user_or_post


def test_lists_are_looked_up_compared_and_explained(live: LiveNetwork, client: redis.Redis) -> None:
    user, posts = ids_of(live, "users")[0], ids_of(live, "posts")
    found = run_json(live, "lookup", given(user))
    assert (found["user_id"], found["source"]) == (user, "personal")
    assert found["key"].endswith(f":user:{quote(user, safe='@')}")
    listed = [post["post_id"] for post in found["posts"]]
    assert set(listed) <= set(posts)
    assert all(post["text"] for post in found["posts"])
    assert [post for post, _ in json.loads(str(client.get(found["key"])))][:20] == listed
    assert f"user {quote_id(user)}: variant" in run(live, "lookup", given(user))
    compared = run_json(live, "diff", given(user), "control", "test")
    assert {row["post_id"] for row in compared["changes"]} <= set(posts)
    explanation = run_json(live, "explain", given(user), given(listed[0]))
    assert (explanation["user_id"], explanation["post_id"], explanation["rank"]) == (user, listed[0], 1)
    assert explanation["score"] == pytest.approx(found["posts"][0]["score"], abs=1e-3)
    for wrong in ("x" * 129, "a\nb"):
        reason = run(live, "lookup", wrong, code=2)
        assert re.search("value for 'USER': '[xa].*' must be (a uuid|text of 1 to 128)", reason)
    assert "'POST'" in run(live, "explain", user, "a\nb", code=2)


def test_a_post_is_blocked_and_unblocked_by_its_own_id(live: LiveNetwork, client: redis.Redis) -> None:
    post = ids_of(live, "posts")[0]
    found = run_json(live, "block", given(post))
    assert found == found | {
        "post_id": post, "blocked": True, "changed": True, "known": True, "reason": "by hand",
    }  # fmt: skip
    assert client.smembers(KEYS.blocked) == {post}
    assert "blocked posts  1" in re.sub(" {2,}", "  ", run(live, "doctor"))
    client.sadd(KEYS.blocked, "a\nb")
    assert "1 of 2 members are not post ids and block nothing: 'a\\nb'" in live.run("doctor").stdout
    client.sadd(KEYS.blocked, given(post))
    assert f"post {quote_id(post)} was blocked already: since" in run(live, "block", given(post))
    assert run_json(live, "unblock", given(post))["changed"] is True
    assert client.smembers(KEYS.blocked) == {"a\nb"}
    run(live, "run", "--variant", "control")
    run(live, "block", given(post))
    run(live, "run", "--variant", "control")
    assert all(post not in str(value) for value in user_lists(client).values())


def test_the_console_shows_and_blocks_posts_of_any_id(live: LiveNetwork, client: redis.Redis) -> None:
    user, posts = ids_of(live, "users")[0], sorted(ids_of(live, "posts"))
    settings = Settings.of(database_url=live.database_url, redis_url=live.redis_url)
    with open_console(settings) as pages:
        listed = pages.get("/tables/posts.json").get_json()["rows"]
        assert sorted(row["post_id"] for row in listed) == posts
        for post in posts:
            answer = pages.get("/posts", query_string={"id": given(post)})
            assert answer.status_code == 200
            (row,) = (row for row in listed if row["post_id"] == post)
            assert f"<h1>Post {escape(post)}</h1>" in answer.text
            assert row["text"][:20] in unescape(answer.text)
        assert confirm(pages, "block", "spam", post=given(posts[0])).status_code == 200
        assert client.smembers(KEYS.blocked) == {posts[0]}
        assert confirm(pages, "unblock", "an error", post=posts[0]).status_code == 200
        assert client.smembers(KEYS.blocked) == set()
        found = pages.get("/search", query_string={"q": user}, follow_redirects=True).text
        assert f"<h1>User {escape(user)}</h1>" in found


def user_lists(client: redis.Redis) -> dict[str, list[Any]]:
    """Return the live lists of `control` by the end of their keys."""
    start = KEYS.user(str(client.get(KEYS.live("control"))), "")
    names = list(client.scan_iter(match=f"{start}*", count=1_000))
    return {name[len(start) :]: json.loads(str(client.get(name))) for name in names}


def test_who_acts_and_who_is_new_is_refreshed_and_who_is_gone_is_forgotten(
    live: LiveNetwork, client: redis.Redis
) -> None:
    users, posts = ids_of(live, "users"), ids_of(live, "posts")
    user, new = users[1], "ffffffff-0000-4000-8000-000000000000"
    back = "eeeeeeee-0000-4000-8000-000000000000"
    before = user_lists(client)
    liked = before[quote(user, safe="@")][0][0]
    execute(
        live.database_url,
        f"INSERT INTO recs.interactions VALUES ($${user}$$, $${liked}$$, 'like', now())",
        f"INSERT INTO recs.interactions VALUES ($${user}$$, '{back}', 'like', '2021-10-05T12:00Z')",
        f"INSERT INTO recs.users VALUES ('{new}', 30, 'Omsk', false)",
        f"INSERT INTO recs.posts VALUES ('{back}', 'sport', 'match goal team', NULL)",
    )
    run(live, "refresh")
    after = user_lists(client)
    assert after.keys() - before.keys() == {new}
    assert not {liked, back} & {post for post, _ in after[quote(user, safe="@")]}
    changed = {name for name, ranked in before.items() if after[name] != ranked}
    assert changed == {quote(user, safe="@")}
    assert back in {post for post, _ in after[new]} <= {*posts, back}
    again = live.run("refresh")
    assert again.returncode == 0, again.stderr
    assert user_lists(client) == after
    execute(live.database_url, f"DELETE FROM recs.users WHERE user_id::text = $${user}$$")
    run(live, "refresh")
    assert after.keys() - user_lists(client).keys() == {quote(user, safe="@")}


def test_nothing_is_left_of_a_user_who_is_forgotten(live: LiveNetwork, client: redis.Redis) -> None:
    users = ids_of(live, "users")
    other, forgotten = [each for each in users if sum(each in any_user for any_user in users) == 1][-2:]
    at = datetime.now(UTC).timestamp()
    served = [Exposure(user, "control", "R", "personal", at) for user in users]
    client.xadd(KEYS.exposures, {FIELD: encode_exposures(served)})
    run(live, "experiment", "pin", given(forgotten), "test")
    run(live, "experiment", "drain")
    assert run_json(live, "experiment", "report")["unknown_ids"] == 0
    assert query(live.database_url, "SELECT count(*) FROM recs.exposures") == [(len(users),)]
    client.xadd(KEYS.exposures, {FIELD: encode_exposures(served)})
    dry = run_json(live, "forget", given(forgotten), "--dry-run")
    assert (dry["users"], dry["lists"], dry["exposures"], dry["pinned"]) == (1, 2, 2, 1)
    execute(live.database_url, f"DELETE FROM recs.users WHERE user_id::text = $${forgotten}$$")
    done = run_json(live, "forget", given(forgotten))
    assert {**done, "dry_run": True, "in_source": 1} == dry
    assert done["in_source"] == 0
    assert run_json(live, "forget", given(forgotten))["lists"] == 0
    texts = [path.read_bytes() for path in live.model_dir.rglob("*") if path.is_file()]
    redis_values = [str(name) + str(client.dump(name)) for name in client.scan_iter(count=1_000)]
    tables = [query(live.database_url, f"SELECT t::text FROM recs.{table} t") for table in OUR_TABLES]
    everything = " ".join([*map(str, texts), *redis_values, *map(str, tables)])
    for sought, there in ((forgotten, False), (other, True)):
        forms = {sought, quote(sought, safe="@"), json.dumps(sought)[1:-1]}
        forms |= {str(sought.encode("utf-32-le"))[2:-1], str(sought.encode())[2:-1]}
        assert any(form in everything for form in forms) is there, sought
    assert run_json(live, "forget", "--gone")["users"] == 0
    execute(live.database_url, f"DELETE FROM recs.users WHERE user_id::text = $${other}$$")
    assert run_json(live, "forget", "--gone")["lists"] == 2


def test_views_of_a_file_are_evaluated(live: LiveNetwork, tmp_path: Path) -> None:
    user, posts = ids_of(live, "users")[0], ids_of(live, "posts")
    rows = [["timestamp", "user_id", "post_id", "action", "target"]]
    rows += [["2021-11-02", given(user), each, "view", str(int(each == posts[0]))] for each in posts]
    file = tmp_path / "views.csv"
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows(rows)
    assert run_json(live, "evaluate", "--views", str(file))["control"]["users"] == 1


def test_the_next_night_is_compared_with_the_live_one_and_one_of_other_ids_is_not(
    live: LiveNetwork, client: redis.Redis
) -> None:
    before = live_run(client)
    run(live, "run", "--variant", "control")
    assert live_run(client) != before
    rules = {rule["rule"]: rule for rule in gate_of(client)}
    assert rules["overlap"]["value"] > 0.9
    for table, column in COLUMNS_WITH_IDS:
        change = f"ALTER {column} TYPE bigint USING {AS_NUMBER.format(column)}"
        execute(live.database_url, f"ALTER TABLE recs.{table} {change}")
    stopped = run(live, "refresh", code=1)
    assert "run a night now (python -m batch run)" in stopped
    assert "is of another kind" in live.run("doctor").stdout or "of kind" in live.run("doctor").stdout
    warned = live.run("forget", "--gone", "--json")
    assert warned.returncode == 0, warned.stderr
    assert json.loads(warned.stdout)["lists"] == 0
    done = live.run("run", "--variant", "control")
    assert done.returncode == 0, done.stderr
    rules = {rule["rule"]: rule for rule in gate_of(client)}
    assert "its ids are of another kind" in rules["overlap"]["why"]
    assert rules["overlap"]["value"] is None


def test_uuids_and_text_are_two_kinds_to_what_finds_who_is_gone(
    live: LiveNetwork, client: redis.Redis
) -> None:
    user_before, (control, test) = ids_of(live, "users")[0], (live_run(client, each) for each in VARIANTS)
    other_ids = f"warning: the ids of users in {test}, {control} are of another kind than"
    changes = {"uuid": "text USING 'was ' || {}", "text": "uuid USING md5({})::uuid"}
    for table, column in COLUMNS_WITH_IDS:
        kind = query(live.database_url, f"SELECT pg_typeof({column})::text FROM recs.{table} LIMIT 1")[0][0]
        change = f"ALTER {column} TYPE {changes[kind].format(column)}"
        execute(live.database_url, f"ALTER TABLE recs.{table} {change}")
    gone = live.run("forget", "--gone", "--json")
    assert json.loads(gone.stdout)["lists"] == 0
    assert other_ids in gone.stderr
    assert "warning: the ids" not in live.run("forget", given(user_before), "--dry-run").stderr
    run(live, "run", "--variant", "control")
    user = ids_of(live, "users")[0]
    assert "ids are of different kinds" in run(live, "diff", user, str(control), "control", code=1)
    assert other_ids in live.run("forget", given(user), "--dry-run").stderr
    execute(live.database_url, f"DELETE FROM recs.users WHERE user_id::text = $${user}$$")
    before = user_lists(client)
    stopped = run(live, "refresh", code=1)
    assert "posts of the live runs are not in" not in stopped
    assert "are not in recs.users any more" not in stopped
    assert f"nobody is found to be gone from {test}, {control}:" in stopped
    assert client.smembers(KEYS.gone) == set()
    assert before.keys() - user_lists(client).keys() == {quote(user, safe="@")}


def gate_of(client: redis.Redis) -> list[dict[str, Any]]:
    """Return the verdicts of the gate on the live run of `control`."""
    value = client.get(KEYS.manifest(str(live_run(client))))
    return Manifest.from_json(str(value)).gate
