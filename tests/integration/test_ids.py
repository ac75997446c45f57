"""Ids that are uuids or text, from the views in Postgres to the lists in Redis, at night and in refreshes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import redis

from batch.loading.network import load_network
from batch.postgres import open_engine
from contract.codec import decode_list
from contract.errors import SourceError
from contract.ids import Id, IdKind, IdKinds
from contract.keys import Keys
from contract.settings import Settings
from tests.integration.test_point_in_time import LATER
from tests.support.batch import change_ids, execute, live_run, make_network, query, run_here, sql_id

KEYS = Keys()
NUMBER, UUID, TEXT = IdKind
NEW_USER, NEW_POST = 61, 141
KINDS = [IdKinds(UUID, TEXT), IdKinds(TEXT, UUID), IdKinds(NUMBER, TEXT), IdKinds(TEXT, NUMBER)]


@pytest.fixture
def servers(database_url: str, redis_url: str, tmp_path: Path) -> dict[str, Any]:
    make_network(database_url)
    return {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path}


def read_ids(database_url: str, view: str, column: str) -> list[Id]:
    return [as_id(value) for (value,) in query(database_url, f"SELECT {column} FROM recs.{view}")]


def as_id(value: Any) -> Id:
    return value if isinstance(value, int) else str(value)


def lists_of_users(database_url: str, client: redis.Redis) -> dict[Id, list[Id]]:
    """Return each user's posts in the live run; every user has a list with known posts, best first."""
    run_id, posts = live_run(client), set(read_ids(database_url, "posts", "post_id"))
    lists: dict[Id, list[Id]] = {}
    for user_id in read_ids(database_url, "users", "user_id"):
        ranked = decode_list(str(client.get(KEYS.user(str(run_id), user_id))))
        lists[user_id] = [post for post, _ in ranked]
        assert len(ranked) == len(set(lists[user_id])) > 0
        assert set(lists[user_id]) <= posts
        assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)
    return lists


def assert_no_liked_posts(database_url: str, lists: dict[Id, list[Id]]) -> None:
    liked = query(
        database_url, "SELECT user_id::text, post_id::text FROM recs.interactions WHERE action = 'like'"
    )
    shown = {(str(user), str(post)) for user, posts in lists.items() for post in posts}
    assert liked
    assert not shown & set(liked)


@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: f"{kinds.users}-{kinds.posts}")
def test_a_night_and_a_refresh_write_lists_under_ids_of_every_kind(
    servers: dict[str, Any], redis_client: redis.Redis, kinds: IdKinds
) -> None:
    database_url = servers["database_url"]
    change_ids(database_url, kinds)
    post_ids = read_ids(database_url, "posts", "post_id")
    blocked = str(post_ids[5]).upper() if kinds.posts is UUID else str(post_ids[5])
    redis_client.sadd(KEYS.blocked, blocked)
    redis_client.hset(KEYS.posts, "gone", "{}")

    done = run_here("run", "--variant", "all", OVERNIGHT_TOP_N="40", **servers)
    assert done.returncode == 0, done.stderr
    lists, run_id = lists_of_users(database_url, redis_client), str(live_run(redis_client))
    assert_no_liked_posts(database_url, lists)
    assert not any(post_ids[5] in posts for posts in lists.values())
    manifest = json.loads(str(redis_client.get(KEYS.manifest(run_id))))
    assert manifest["ids"] == kinds.to_record()
    assert set(manifest["some_users"]) <= set(lists)
    popular = [post for post, _ in decode_list(str(redis_client.get(KEYS.popular(run_id))))]
    assert len(popular) == 39
    assert set(popular) <= set(post_ids) - {post_ids[5]}
    assert set(redis_client.hkeys(KEYS.posts)) == set(map(str, post_ids))
    for post_id in post_ids:
        similar = [post for post, _ in decode_list(str(redis_client.get(KEYS.post(run_id, post_id))))]
        assert similar
        assert set(similar) <= set(post_ids) - {post_id, post_ids[5]}

    acted, new = (sql_id(kinds.users, number) for number in (7, NEW_USER))
    post, new_post = (sql_id(kinds.posts, number) for number in (103, NEW_POST))
    execute(
        database_url,
        f"INSERT INTO recs.users (user_id, age) SELECT {new}, 30",
        f"INSERT INTO recs.posts (post_id, topic, text, created_at) SELECT {new_post}, 'music', 'x', now()",
        f"INSERT INTO recs.interactions SELECT {acted}, {post}, 'like', now()",
        f"INSERT INTO recs.interactions SELECT {new}, {post}, 'like', now() - interval '90 days'",
        f"INSERT INTO recs.interactions SELECT {acted}, {post}, 'unlike', now() - interval '1 hour'",
    )
    done = run_here("refresh", **servers)
    assert done.returncode == 0, done.stderr
    refreshed = lists_of_users(database_url, redis_client)
    assert_no_liked_posts(database_url, refreshed)
    assert len(refreshed) == len(lists) + 1
    changed = {user for user, posts in refreshed.items() if lists.get(user) != posts}
    assert 0 < len(changed) <= 2
    assert len(redis_client.hkeys(KEYS.posts)) == len(post_ids) + 1
    assert run_here("refresh", **servers).returncode == 0


def test_a_refresh_of_a_run_with_ids_of_another_kind_says_so(
    servers: dict[str, Any], redis_client: redis.Redis
) -> None:
    assert run_here("run", "--variant", "control", **servers).returncode == 0
    before = {key: redis_client.get(key) for key in redis_client.scan_iter(match=KEYS.run_pattern("*"))}
    change_ids(servers["database_url"], IdKinds(UUID, NUMBER))
    done = run_here("refresh", **servers)
    assert done.returncode == 1
    assert "the ids in recs.users.user_id are of kind uuid now, and" in done.stderr
    assert "was made with ids of kind number; its lists stay as they are; run a night now" in done.stderr
    assert "Traceback" not in done.stderr
    assert {key: redis_client.get(key) for key in before} == before
    done = run_here("run", "--variant", "control", **servers)
    assert done.returncode == 0, done.stderr
    lists_of_users(servers["database_url"], redis_client)


def load(database_url: str) -> Any:
    with open_engine(Settings.of(database_url=database_url)).connect() as connection:
        return load_network(connection, LATER)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "ALTER TABLE recs.interactions ALTER user_id TYPE text",
            "recs.interactions.user_id is of type text and recs.users.user_id of type bigint; "
            "make both of one type in the views",
        ),
        (
            "ALTER TABLE recs.posts ALTER post_id TYPE uuid USING md5(post_id::text)::uuid",
            "recs.interactions.post_id is of type bigint and recs.posts.post_id of type uuid",
        ),
        (
            "ALTER TABLE recs.users ALTER user_id TYPE numeric",
            "recs.users.user_id is of type numeric and must be a whole number, a uuid or text",
        ),
    ],
)
def test_ids_of_types_that_do_not_fit_are_refused_by_name(
    servers: dict[str, Any], statement: str, message: str
) -> None:
    execute(servers["database_url"], statement)
    with pytest.raises(SourceError, match=message.replace("(", r"\(")):
        load(servers["database_url"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            "''",
            "1 ids that are empty, longer than 128 characters or with control .*, first user_id ''",
        ),
        ("repeat('x', 129)", "1 ids that are empty, longer"),
        (r"E'a\nb'), (E'c\x1b[31m'", r"2 ids that .* first user_id 'a\\nb'; leave them out in the view"),
        ("E'c\\u009bd'", r"first user_id 'c\\x9bd'"),
        ("'1'", "1 ids more than once, first user_id 1; make the view return one row per id"),
        ("NULL", "recs.users.user_id is null in 1 rows"),
    ],
)
def test_text_ids_that_cannot_be_used_are_counted_and_the_first_is_named(
    servers: dict[str, Any], values: str, message: str
) -> None:
    execute(
        servers["database_url"],
        *(f"ALTER TABLE recs.{table} ALTER user_id TYPE text" for table in ("users", "interactions")),
        f"INSERT INTO recs.users (user_id) VALUES ({values})",
    )
    with pytest.raises(SourceError, match=message):
        load(servers["database_url"])


def test_text_ids_are_in_the_order_of_their_code_points_and_without_the_blanks_of_char(
    servers: dict[str, Any],
) -> None:
    execute(
        servers["database_url"],
        *(f"ALTER TABLE recs.{table} ALTER user_id TYPE char(12)" for table in ("users", "interactions")),
        "DELETE FROM recs.users",
        "INSERT INTO recs.users (user_id) SELECT unnest(ARRAY['b', 'B', 'a', 'ä', '\U0001f600', 'Z', '9'])",
    )
    assert load(servers["database_url"]).user_ids.tolist() == ["9", "B", "Z", "a", "b", "ä", "\U0001f600"]
