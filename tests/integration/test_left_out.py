"""Liked, own and viewed posts are left out: nights, refreshes, evaluation and the gate, against Postgres."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from batch.context import Stores
from batch.evaluation.catalogue_case import build_case
from batch.files import COLUMNS
from batch.gate.check import check_liked
from batch.loading import interaction_store
from batch.loading.left_out import ActedOn
from batch.loading.model_columns import check_model_columns
from batch.loading.network import load_network
from batch.loading.schema import check_views
from batch.pipeline import run_night
from batch.postgres import open_engine
from batch.refresh.refresh import refresh
from batch.reports.describe_rules import describe_rules
from contract.codec import decode_list, encode_list
from contract.errors import ModelError, SourceError
from contract.ids import IdKind, IdKinds
from contract.settings import Settings
from tests.support.batch import (
    change_ids,
    execute,
    live_lists,
    live_run,
    make_engine,
    make_network,
    query,
    sql_id,
)
from tests.support.evaluation import load_database

POSTS = 40
TOP_N = 10
TAKEN_BACK = (3, 107)
"""A user and a post with a like and an unlike."""

LEFT_OUT = {
    "liked": """
        SELECT user_id::text, post_id::text FROM recs.interactions i WHERE action = 'like' AND NOT EXISTS (
            SELECT FROM recs.interactions u WHERE (u.user_id, u.post_id) = (i.user_id, i.post_id)
            AND u.action = 'unlike' AND u.happened_at >= i.happened_at)
    """,
    "own": """
        SELECT author_id::text, post_id::text FROM recs.posts
        WHERE author_id IN (SELECT user_id FROM recs.users)
    """,
    "viewed": "SELECT user_id::text, post_id::text FROM recs.interactions",
}
"""Reason -> SQL of (user, post), all as text; the first reason counts."""


@pytest.fixture
def make_stores(
    database_url: str, redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> Callable[[str], Stores]:
    """Make the stores of a night that leaves out what a setting says."""

    def make(leave_out: str) -> Stores:
        settings = Settings.of(
            database_url=database_url,
            redis_url=redis_url,
            model_dir=str(tmp_path),
            threads=1,
            top_n=TOP_N,
            leave_out=leave_out,
        )
        return Stores(settings, open_engine(settings), redis_client, "tests")

    return make


def make_network_with_authors(database_url: str, kind: IdKind = IdKind.NUMBER) -> None:
    """Make a network: users wrote half of the posts, an unknown user or nobody the rest; a like is undone."""
    make_network(database_url, posts=POSTS)
    user, post = TAKEN_BACK
    execute(
        database_url,
        f"DELETE FROM recs.interactions WHERE (user_id, post_id) = ({user}, {post})",
        f"INSERT INTO recs.interactions VALUES ({user}, {post}, 'like', '2021-10-05T12:00Z'),"
        f" ({user}, {post}, 'unlike', '2021-10-06T12:00Z')",
        "INSERT INTO recs.interactions VALUES (5, 105, 'view', now() + interval '1 year')",
        "ALTER TABLE recs.posts ADD author_id bigint",
        "UPDATE recs.posts SET author_id = CASE post_id % 4 WHEN 0 THEN 1000000 WHEN 1 THEN NULL"
        " ELSE post_id - 100 END",
    )
    change_ids(database_url, IdKinds(kind, kind))
    sql_type = {IdKind.NUMBER: "bigint", IdKind.UUID: "uuid", IdKind.TEXT: "text"}[kind]
    using = f"CASE WHEN author_id IS NOT NULL THEN {sql_id(kind, 'author_id')} END"
    execute(database_url, f"ALTER TABLE recs.posts ALTER author_id TYPE {sql_type} USING {using}")


def pairs_left_out(database_url: str, leave_out: str) -> dict[str, set[tuple[str, str]]]:
    """Return reason -> pairs of user and post, each pair with its first reason."""
    found: dict[str, set[tuple[str, str]]] = {}
    for reason, statement in LEFT_OUT.items():
        pairs = {(user, post) for user, post in query(database_url, statement)}
        found[reason] = pairs - set().union(*found.values())
    return found | ({"viewed": set()} if leave_out == "liked" else {})


def check_lists(stores: Stores, database_url: str) -> None:
    """Check that every user's list has TOP_N of the posts that it may have, or all of them."""
    left_out = set().union(*pairs_left_out(database_url, stores.settings.feed.leave_out).values())
    posts = [post for (post,) in query(database_url, "SELECT post_id::text FROM recs.posts")]
    users = [user for (user,) in query(database_url, "SELECT user_id FROM recs.users")]
    run_id = str(live_run(stores.redis))
    for user in (each if isinstance(each, int) else str(each) for each in users):
        ranked = decode_list(stores.redis.get(stores.keys.user(run_id, user)))
        allowed = {post for post in posts if (str(user), post) not in left_out}
        assert {str(post) for post, *_ in ranked} <= allowed
        assert len(ranked) == min(TOP_N, len(allowed))


@pytest.mark.parametrize("leave_out", ["liked", "viewed"])
@pytest.mark.parametrize("kind", IdKind)
def test_lists_leave_out_by_brute_force_and_the_manifest_counts_the_pairs(
    make_stores: Callable[[str], Stores], database_url: str, leave_out: str, kind: IdKind
) -> None:
    make_network_with_authors(database_url, kind)
    stores = make_stores(leave_out)
    (manifest,) = run_night(stores, ("control",))
    assert manifest.state == "live"
    check_lists(stores, database_url)
    pairs = pairs_left_out(database_url, leave_out)
    assert manifest.left_out_of_lists == {reason: len(each) for reason, each in pairs.items()}
    assert pairs["own"]
    assert all(manifest.left_out_of_lists[reason] for reason in LEFT_OUT if reason != "viewed")
    (check,) = [verdict for verdict in manifest.gate if verdict["rule"] == "liked_served"]
    assert check["passed"]
    assert ("liked, written or viewed" if leave_out == "viewed" else "liked or written") in check["why"]
    stored = replace(
        manifest, left_out_of_lists=dict(sorted(manifest.left_out_of_lists.items(), reverse=True))
    )
    said = [f"{len(pairs[reason])} {reason}" for reason in ("liked", "own", "viewed") if pairs.get(reason)]
    assert describe_rules(stored)[0] == f"left out of lists: {', '.join(said)} posts"


def test_a_refresh_leaves_out_what_was_viewed_and_written_since_the_night(
    make_stores: Callable[[str], Stores], database_url: str
) -> None:
    make_network_with_authors(database_url)
    stores = make_stores("viewed")
    run_night(stores, ("control",))
    user = max(live_lists(stores.redis), key=lambda each: len(live_lists(stores.redis)[each]))
    best = live_lists(stores.redis)[user][0][0]
    execute(
        database_url,
        f"INSERT INTO recs.interactions VALUES ({user}, {best}, 'view', now())",
        f"INSERT INTO recs.posts VALUES (200, 'sport', 'match', now(), {user}), (201, '', '', now(), 1)",
    )
    (record,) = refresh(stores, ("control",))
    assert record["users"] == 1
    posts = [post for post, *_ in live_lists(stores.redis)[user]]
    assert best not in posts
    assert 200 not in posts
    refreshed = pairs_left_out(database_url, "viewed")
    assert not {(str(user), str(post)) for post in posts} & set().union(*refreshed.values())


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_the_gate_finds_a_post_that_should_have_been_left_out(
    make_stores: Callable[[str], Stores], database_url: str, reason: str
) -> None:
    make_network_with_authors(database_url)
    stores = make_stores("viewed")
    (manifest,) = run_night(stores, ("control",))
    user, post = sorted(pairs_left_out(database_url, "viewed")[reason])[0]
    stores.redis.set(stores.keys.user(manifest.run_id, int(user)), encode_list([(int(post), 1.5)]))
    dataset = load_database(database_url, clock=datetime.now(UTC), leave_out="viewed")
    found = check_liked(stores, manifest.run_id, dataset, 60)
    assert (found.liked_in_lists, found.lists_read) == (1, 60)
    assert found.because == ("liked", "written", "viewed")


def test_what_is_evaluated_is_what_lists_may_have(database_url: str) -> None:
    make_network_with_authors(database_url)
    dataset = load_database(database_url, clock=datetime.now(UTC), leave_out="viewed")
    network, history = dataset.network, dataset.at_holdout
    case = build_case(network, history, dataset.now.likes, 2_000, 1)
    before = f"happened_at <= '{history.cutoff.isoformat()}'"
    acted = set(query(database_url, f"SELECT user_id, post_id FROM recs.interactions WHERE {before}"))
    own = set(query(database_url, "SELECT author_id, post_id FROM recs.posts WHERE author_id <= 60"))
    posts = network.posts.index.to_numpy()
    for row, user in enumerate(case.user_ids.tolist()):
        left_out = {(user, post) for post in posts[case.left_out.of(row)].tolist()}
        assert left_out == {pair for pair in acted | own if pair[0] == user}
    assert case.protocol == "full catalogue with likes and views left out"
    owner, post = np.divmod(case.liked_later, posts.size)
    assert not case.left_out.contain(owner, post, posts.size).any()
    assert (np.bincount(owner, minlength=case.users.size) > 0).all()


def test_viewed_posts_are_read_one_range_of_users_at_a_time_and_each_range_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interaction_store, "USERS_PER_BUCKET", 4)
    monkeypatch.setattr(interaction_store, "PART_ROWS", 300)
    make_network_with_authors(database_url)
    history = load_database(database_url, clock=datetime.now(UTC), leave_out="viewed").now
    acted_on = history.left_out
    assert isinstance(acted_on, ActedOn)
    ranges = history.store.user_ranges()
    assert len(ranges) > 5
    read: list[dict[str, Any]] = []
    arrays = history.store.arrays

    def record(statement: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        if "DISTINCT user_row, post_row" in statement:
            read.append(parameters or {})
        return arrays(statement, parameters)

    monkeypatch.setattr(history.store, "arrays", record)
    whole = acted_on.of_rows(np.arange(60))
    read.clear()
    for start in range(0, 60, 7):
        stop = min(start + 7, 60)
        part, expected = acted_on.of_users(start, stop), whole.of_users(start, stop)
        np.testing.assert_array_equal(part.starts, expected.starts)
        np.testing.assert_array_equal(part.posts, expected.posts)
    assert [(each["start"], each["stop"]) for each in read] == ranges
    backwards = np.arange(59, -1, -3)
    np.testing.assert_array_equal(acted_on.of_rows(backwards).posts, whole.of_rows(backwards).posts)


def test_an_author_is_no_feature_and_ids_of_authors_are_exact(database_url: str) -> None:
    make_network_with_authors(database_url)
    largest = 2**63 - 1
    execute(
        database_url,
        f"INSERT INTO recs.users VALUES ({largest}, 30, 'Omsk', false), ({largest - 1}, 30, 'Omsk', false)",
        f"UPDATE recs.posts SET author_id = {largest - 1} WHERE post_id = 101",
    )
    dataset = load_database(database_url, clock=datetime.now(UTC))
    assert dataset.now.own is not None
    rows = {user: row for row, user in enumerate(dataset.network.users.index.tolist())}
    assert dataset.now.own.of(rows[largest - 1]).tolist() == [0]
    assert dataset.now.own.of(rows[largest]).size == 0
    assert "author_id" not in dataset.network.types["posts"]


def test_authors_must_be_named_as_users_are(database_url: str) -> None:
    make_network_with_authors(database_url)
    execute(database_url, "ALTER TABLE recs.posts ALTER author_id TYPE text")
    with make_engine(database_url).connect() as connection, pytest.raises(SourceError) as caught:
        load_network(connection, datetime.now(UTC))
    assert str(caught.value).startswith("recs.posts.author_id is of type text and recs.users.user_id of type")


def test_a_model_that_was_trained_with_the_author_is_told_in_one_line(
    database_url: str, tmp_path: Path
) -> None:
    make_network_with_authors(database_url)
    (tmp_path / COLUMNS).write_text(json.dumps({"posts": {"topic": ["sport"], "author_id": None}}))
    with make_engine(database_url).connect() as connection:
        views = check_views(connection)
    with pytest.raises(ModelError, match=r"trained with recs.posts.author_id, .* run a night now"):
        check_model_columns(tmp_path, views)
