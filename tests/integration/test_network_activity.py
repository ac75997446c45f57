"""What people of the demo's network do: rows of activity, and what the batch learns from them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from batch.loading.history import History, count_history
from contract.ids import IdKind
from demo.network_app import activity
from demo.postgres import make_engine
from demo.simulate import simulate
from tests.support.batch import query, topics_of
from tests.support.evaluation import pull_database

LIKED_ONCE = """
    SELECT user_id, post_id FROM feed_action WHERE action = 'like'
    GROUP BY user_id, post_id ORDER BY user_id, post_id LIMIT 1
"""
UNTOUCHED = """
    SELECT id FROM post WHERE id NOT IN (SELECT post_id FROM feed_action WHERE user_id = '{user}')
    ORDER BY id LIMIT 4
"""


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    found = make_engine(database_url)
    yield found
    found.dispose()


def history_now(database_url: str) -> tuple[History, list[str]]:
    """Return what the batch knows now, and the ids of the users, as text, in its order."""
    now = datetime.now(UTC) + timedelta(seconds=1)
    pulled = pull_database(database_url, now)
    users = [str(user) for user in pulled.network.user_ids.tolist()]
    return count_history(pulled.store, pulled.network, now, topics_of(pulled.network)), users


@pytest.mark.parametrize("ids", [IdKind.NUMBER, IdKind.UUID, IdKind.TEXT])
def test_likes_views_and_unlikes(database_url: str, engine: sa.Engine, ids: IdKind) -> None:
    simulate(database_url, 40, 40, 600, seed=1, ids=ids)
    user, old = map(activity.plain_id, query(database_url, LIKED_ONCE)[0])
    new, viewed, own, other = (
        activity.plain_id(post) for (post,) in query(database_url, UNTOUCHED.format(user=user))
    )
    visit, next_visit = str(uuid.uuid4()), str(uuid.uuid4())
    counts_before = row_of(database_url, user)

    def like(_: int) -> bool:
        with engine.begin() as connection:
            return activity.like(connection, user, new, visit)

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(like, range(8))) == [False] * 7 + [True]
    rows = query(database_url, "SELECT kind, post_id, at, undone_at FROM activity ORDER BY at")
    assert [(kind, activity.plain_id(post)) for kind, post, *_ in rows] == [("view", new), ("like", new)]
    assert rows[0][2] < rows[1][2]

    with engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE post SET author_id = :user WHERE id = :own"), {"user": user, "own": own}
        )
        posts, visits = [viewed, new, own], (visit, visit, next_visit)
        seen = [activity.view(connection, user, posts, each) for each in visits]
        assert seen == [1, 0, 1]  # not the liked one, not their own
        assert not activity.like(connection, user, own, visit)
        assert activity.liked_among(connection, user, [new, old, viewed, own, other]) == {new, old}

    with engine.begin() as connection:
        done = [activity.unlike(connection, user, post, visit) for post in (new, new, old, other)]
        assert done == [True, False, True, False]
    with engine.begin() as connection:
        assert activity.liked_among(connection, user, [new, old]) == set()
        assert activity.like(connection, user, new, visit)
        assert activity.read_likes(connection, user, 1)[0][0] == new
    likes = query(database_url, "SELECT undone_at IS NOT NULL FROM activity WHERE kind = 'like' ORDER BY id")
    assert likes == [(True,), (False,)]

    now = row_of(database_url, user)  # one like more, one taken back; three views more
    assert (now["likes"], now["views"]) == (counts_before["likes"], counts_before["views"] + 3)


def row_of(database_url: str, user: int | str) -> dict[str, float]:
    """Return what the batch counts of a user now."""
    history, users = history_now(database_url)
    return history.user_counts.iloc[users.index(str(user))].to_dict()


def test_a_like_of_what_is_not_there(database_url: str, engine: sa.Engine) -> None:
    simulate(database_url, 20, 10, 100, seed=1)
    with engine.begin() as connection:
        visit = str(uuid.uuid4())
        assert not activity.like(connection, 999_999, 888_888, visit)
        assert activity.view(connection, 999_999, [888_888], visit) == 0
        assert activity.view(connection, 999_999, [], visit) == 0
    assert query(database_url, "SELECT count(*) FROM activity") == [(0,)]
