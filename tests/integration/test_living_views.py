"""What the views of a living network show: nothing private, and of each time only what was known then."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import numpy as np
import pytest
import redis
import sqlalchemy as sa

from batch.doctor import postgres_checks
from batch.doctor.finding import Status
from batch.loading.history import History, count_history
from batch.loading.interactions_query import interactions_since
from contract.ids import WHOLE_NUMBERS
from contract.keys import Keys
from demo.checks import LIKES, Expected
from demo.network_app import activity
from demo.postgres import make_engine
from demo.simulate import simulate
from tests.integration.test_point_in_time import features_at
from tests.support.batch import execute, query, topics_of
from tests.support.evaluation import pulled_database

USERS, POSTS, INTERACTIONS = 60, 40, 2_000
VISIT = "00000000-0000-4000-8000-000000000001"

COLUMNS = {
    "users": ["user_id", "gender", "age", "country", "city", "exp_group", "os", "source"],
    "posts": ["post_id", "topic", "text", "created_at", "view_count", "like_count", "author_id"],
    "interactions": ["user_id", "post_id", "action", "happened_at"],
}

READ_BY_VIEWS = """
    SELECT table_name, array_agg(DISTINCT column_name::text ORDER BY column_name::text)
    FROM information_schema.view_column_usage WHERE view_schema = 'recs' GROUP BY table_name
"""

PRIVATE = ("Anna Secretname", "scrypt:of-anna", "a private line")
DO_EVERYTHING = f"""
    INSERT INTO account (user_id, name, name_key, password_hash)
    VALUES (1, '{PRIVATE[0]}', 'anna secretname', '{PRIVATE[1]}'), (2, 'Boris', 'boris', 'x');
    INSERT INTO message (from_id, to_id, text) VALUES (1, 2, '{PRIVATE[2]}');
    INSERT INTO community (name, about) VALUES ('chess', 'about chess');
    INSERT INTO membership SELECT 1, id FROM community;
    INSERT INTO activity (user_id, kind, object_id) VALUES (1, 'register', NULL), (1, 'message', '1'),
        (1, 'join', '1'), (1, 'look', '2'), (1, 'profile', NULL), (1, 'refresh', NULL);
"""

AT_THE_END = "UPDATE activity SET at = timestamptz '{end}' + (at - (SELECT min(at) FROM activity))"
"""Moves what was done in the app to the end of a network of the past."""


@pytest.fixture
def living(database_url: str) -> Iterator[sa.Engine]:
    """A simulated network with the app's tables, and its engine."""
    simulate(database_url, USERS, POSTS, INTERACTIONS, seed=1)
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


def newest(database_url: str) -> datetime:
    ((found,),) = query(database_url, "SELECT max(happened_at) FROM recs.interactions")
    assert isinstance(found, datetime)
    return found


def ids_of(database_url: str) -> tuple[list[int], list[int]]:
    """Return the ids of all people and of all posts, ascending."""
    users = query(database_url, "SELECT user_id FROM recs.users ORDER BY 1")
    posts = query(database_url, "SELECT post_id FROM recs.posts ORDER BY 1")
    return [user for (user,) in users], [post for (post,) in posts]


def history_of(database_url: str, at: datetime) -> History:
    with pulled_database(database_url, at + timedelta(days=1)) as pulled:
        return count_history(pulled.store, pulled.network, at, topics_of(pulled.network))


def likes_of(database_url: str, at: datetime) -> set[tuple[int, int]]:
    """Return user and post of the likes that the batch knows as of a time."""
    users, posts = ids_of(database_url)
    likes = history_of(database_url, at).likes
    pairs = zip(likes.users.tolist(), likes.posts.tolist(), strict=True)
    return {(users[user], posts[post]) for user, post in pairs}


def test_no_view_shows_names_hashes_messages_or_anything_else_of_the_app(
    living: sa.Engine, database_url: str
) -> None:
    before = query(database_url, "SELECT count(*) FROM recs.interactions")
    execute(database_url, DO_EVERYTHING)
    for view, columns in COLUMNS.items():
        found = query(
            database_url,
            "SELECT column_name FROM information_schema.columns "
            f"WHERE table_schema = 'recs' AND table_name = '{view}'",
        )
        assert sorted(name for (name,) in found) == sorted(columns), view
        rows = query(database_url, f"SELECT row_to_json(v)::text FROM recs.{view} v")
        assert rows
        assert not [text for (text,) in rows if any(private in text for private in PRIVATE)]
    read = dict(query(database_url, READ_BY_VIEWS))
    assert set(read) == {"user", "post", "feed_action", "activity"}
    assert read["activity"] == ["at", "kind", "post_id", "undone_at", "user_id"]
    # What is no view, like or unlike is no interaction; every view of posts is made when the network is.
    assert query(database_url, "SELECT count(*) FROM recs.interactions") == before


def test_features_as_of_a_time_do_not_change_by_what_people_do_later(
    living: sa.Engine, database_url: str
) -> None:
    users, posts = ids_of(database_url)
    end = newest(database_url)
    cutoff = end - timedelta(days=5)
    before = features_at(database_url, cutoff, end + timedelta(hours=2))
    liked = query(
        database_url,
        "SELECT DISTINCT user_id, post_id FROM recs.interactions "
        f"WHERE action = 'like' AND happened_at <= '{cutoff.isoformat()}' ORDER BY 1, 2 LIMIT 30",
    )
    assert len(liked) == 30
    with living.begin() as connection:
        for user, post in liked:  # taken back after the cutoff; some are liked again
            assert activity.unlike(connection, user, post, VISIT)
            if post % 2:
                assert activity.like(connection, user, post, VISIT)
        given = [activity.like(connection, user, post, VISIT) for user in users[::3] for post in posts[::5]]
        assert sum(given) > 20
    execute(
        database_url,
        AT_THE_END.format(end=end),
        DO_EVERYTHING,
    )
    after = features_at(database_url, cutoff, end + timedelta(hours=2))
    # Fading likes of taken-back rows are added one by one, which rounds otherwise.
    assert after.columns == before.columns
    np.testing.assert_array_equal(after.user_values, before.user_values)
    np.testing.assert_allclose(after.post_values, before.post_values, rtol=1e-6)
    for one, other in zip(after.affinities, before.affinities, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
    counted = history_of(database_url, cutoff).post_counts["likes"]
    checks = Expected(living, redis.Redis(), Keys(), WHOLE_NUMBERS)
    assert {post: int(likes) for post, likes in checks._read(LIKES, cutoff)} == counted.astype(int).to_dict()
    later = features_at(database_url, end + timedelta(hours=1), end + timedelta(hours=2))
    assert not np.array_equal(later.post_values, before.post_values, equal_nan=True)


def test_counters_of_posts_are_the_networks_own_and_what_was_done_in_the_app(
    living: sa.Engine, database_url: str
) -> None:
    def counters() -> dict[int, tuple[int, int]]:
        rows = query(database_url, "SELECT post_id, view_count, like_count FROM recs.posts")
        return {post: (views, likes) for post, views, likes in rows}

    ((user, post),) = query(
        database_url, "SELECT user_id, post_id FROM feed_action WHERE action = 'like' ORDER BY 1, 2 LIMIT 1"
    )
    other = next(each for each in ids_of(database_url)[0] if each != user)
    execute(database_url, f"DELETE FROM feed_action WHERE user_id = {other} AND post_id = {post}")
    before = counters()
    with living.begin() as connection:
        assert activity.unlike(connection, user, post, VISIT)
        assert not activity.unlike(connection, user, post, VISIT)
        assert activity.like(connection, other, post, VISIT)
        assert not activity.like(connection, other, post, VISIT)
    views, likes = before[post]
    assert counters() == before | {post: (views + 1, likes)}
    with living.begin() as connection:
        assert activity.like(connection, user, post, VISIT)
    assert counters()[post][1] == likes + 1


def test_unlikes_of_the_app_take_back_likes_of_both_tables(living: sa.Engine, database_url: str) -> None:
    users, posts = ids_of(database_url)
    end = newest(database_url)
    before = likes_of(database_url, end)
    with living.begin() as connection:
        (old,) = connection.execute(
            sa.text("SELECT user_id, post_id FROM feed_action WHERE action = 'like' ORDER BY 1, 2 LIMIT 1")
        )
        assert activity.unlike(connection, *old, VISIT)
        one, other = users[5], users[7]
        undone = next(post for post in posts if activity.like(connection, one, post, VISIT))
        assert activity.unlike(connection, one, undone, VISIT)
        assert not activity.unlike(connection, one, undone, VISIT)
        again = next(post for post in posts if activity.like(connection, other, post, VISIT))
        assert activity.unlike(connection, other, again, VISIT)
        assert activity.like(connection, other, again, VISIT)
    execute(database_url, AT_THE_END.format(end=end))
    now = likes_of(database_url, end + timedelta(hours=1))
    assert before - now == {tuple(old)}
    assert now - before == {(other, again)}


def test_doctor_and_a_refresh_use_the_indexes_of_both_tables(living: sa.Engine, database_url: str) -> None:
    end, many = newest(database_url), postgres_checks.MIN_ROWS + 1_000
    rows = f"1, 1, 'view', timestamptz '{end}' - n * interval '1 minute' FROM generate_series(1, {many}) n"
    execute(
        database_url,
        f"INSERT INTO feed_action (user_id, post_id, action, time) SELECT {rows}",
        f"INSERT INTO activity (visit, user_id, post_id, kind, at) SELECT gen_random_uuid(), {rows}",
        "ANALYZE feed_action, activity",
    )
    with living.connect() as connection:
        (finding,) = postgres_checks.check_time_index(connection, {}, end)
        assert finding.status is Status.OK
        assert "an index on the time" in finding.found
        statement = interactions_since(connection, end - timedelta(hours=1))
        plan = "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}"))
        assert "Seq Scan" not in plan, plan
        assert {"feed_action_time", "activity_at"} <= set(plan.replace("(", " ").split()), plan
        connection.rollback()
        connection.exec_driver_sql("DROP INDEX activity_at")
        found = [each.fix for each in postgres_checks.check_time_index(connection, {}, end)]
        assert found == ["CREATE INDEX CONCURRENTLY ON public.activity (at)"]
