"""A user's row, last interactions and likes by topic, by queries that read a bounded number of rows.

Imports neither numpy nor pandas: the console's pages use it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from batch.context import Stores
from batch.loading.interactions_query import id_array
from batch.loading.schema import column_types
from batch.postgres import snapshot
from contract.columns import (
    INTERACTIONS,
    LIKE_ACTION,
    POST_ID,
    POSTS,
    SCHEMA,
    TEXT,
    TOPIC,
    UNLIKE_ACTION,
    USER_ID,
    USERS,
    VIEW_ACTION,
)
from contract.ids import Id

MAX_COUNTED = 10_000
"""Newest interactions of a user that are counted by topic."""
MAX_TEXT = 400
"""Characters of a post's text, and of a value of a user's row."""
MAX_COLUMNS = 60
Attribute = str | int | float | None
"""Value of a user's row; int may be a bool."""
REFRESHED = "refreshed_users"
"""Table of `refresh.stale_users`, whose module imports numpy."""

OF_USER = f"""
    FROM {SCHEMA}.{INTERACTIONS}
    WHERE user_id = :user_id AND happened_at BETWEEN '0001-01-02' AND '9999-12-30'
"""
"""At times that Python has: not -infinity, infinity and null."""

NEWEST = sa.text(f"""
    SELECT DISTINCT happened_at, post_id, action {OF_USER}
    ORDER BY happened_at DESC, post_id DESC, action DESC LIMIT :count
""")
OLDER = sa.text(f"""
    SELECT DISTINCT happened_at, post_id, action {OF_USER} AND happened_at <= :happened_at
        AND (happened_at, post_id, action) < (:happened_at, :post_id, :action)
    ORDER BY happened_at DESC, post_id DESC, action DESC LIMIT :count
""")
COUNTS = sa.text(f"""
    WITH newest AS (SELECT post_id, action, happened_at {OF_USER} ORDER BY happened_at DESC LIMIT :count),
    actions AS (SELECT post_id, action::text AS action, happened_at::timestamptz AS at FROM newest)
    SELECT count(*) AS counted, min(at) AS since,
        count(*) FILTER (WHERE action = '{VIEW_ACTION}') AS views,
        ARRAY(
            SELECT post_id::text FROM actions GROUP BY post_id
            HAVING max(at) FILTER (WHERE action = '{LIKE_ACTION}')
                > coalesce(max(at) FILTER (WHERE action = '{UNLIKE_ACTION}'), '-infinity')
        ) AS liked
    FROM actions
""")


@dataclass(frozen=True)
class Interaction:
    """What a user did; `topic` and `text` are None if the network does not have the post."""

    post_id: Id
    action: str
    happened_at: datetime
    topic: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class UserCounts:
    """Counts of a user's newest interactions.

    Attributes
    ----------
    counted
        Interactions read, at most MAX_COUNTED.
    views, likes
        Views, and posts that they like: likes that were taken back are not among them.
    topics
        (topic, likes), most liked first; None for posts without a topic, and for those that are gone.
    since
        Time of the oldest that was read; None without any.
    """

    counted: int
    views: int
    likes: int
    topics: list[tuple[str | None, int]]
    since: datetime | None

    @property
    def capped(self) -> bool:
        """Whether there may be older interactions that are not counted."""
        return self.counted >= MAX_COUNTED


def read_user(stores: Stores, user_id: Id) -> dict[str, Attribute] | None:
    """Return a user's row of `recs.users`, column -> value; None if there is none."""
    query = sa.text(f"SELECT * FROM {SCHEMA}.{USERS} WHERE user_id = :user_id LIMIT 1")
    with snapshot(stores.engine) as connection:
        row = connection.execute(query, {"user_id": user_id}).mappings().first()
    if row is None:
        return None
    return {str(name): _as_attribute(value) for name, value in list(row.items())[:MAX_COLUMNS]}


def _as_attribute(value: Any) -> Attribute:
    """Return a value as JSON can have it: what is neither a number nor true or false as text."""
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)[:MAX_TEXT]


def read_interactions(
    stores: Stores, user_id: Id, count: int, before: Interaction | None = None, *, with_text: bool = True
) -> list[Interaction]:
    """Return a user's interactions, newest first, with topic of their posts, and text if that is wanted.

    Of equal rows of the view one is returned.

    Parameters
    ----------
    before
        Only interactions that come after this one in that order.
    """
    arguments: dict[str, Any] = {"user_id": user_id, "count": count}
    if before is not None:
        # As text, which Postgres compares with a column of any type of ids.
        arguments |= {
            "happened_at": before.happened_at,
            "post_id": str(before.post_id),
            "action": before.action,
        }
    with snapshot(stores.engine) as connection:
        rows = connection.execute(NEWEST if before is None else OLDER, arguments).all()
        posts = _read_posts(connection, [row.post_id for row in rows], with_text=with_text)
    return [
        Interaction(
            row.post_id if isinstance(row.post_id, int) else str(row.post_id),
            str(row.action),
            _in_utc(row.happened_at),
            **posts.get(str(row.post_id), {}),
        )
        for row in rows
    ]


def count_interactions(stores: Stores, user_id: Id) -> UserCounts:
    """Count a user's newest interactions, and the posts that they like by topic."""
    with snapshot(stores.engine) as connection:
        found = connection.execute(COUNTS, {"user_id": user_id, "count": MAX_COUNTED}).one()
        posts = _read_posts(connection, found.liked, with_text=False)
    topics = Counter(posts.get(post_id, {}).get(TOPIC) for post_id in found.liked)
    return UserCounts(
        counted=found.counted,
        views=found.views,
        likes=len(found.liked),
        topics=sorted(topics.items(), key=lambda item: (-item[1], item[0] or "")),
        since=found.since,
    )


def find_refreshed_at(stores: Stores, run_id: str, user_id: Id) -> datetime | None:
    """Return when a refresh last wrote a user's list of a run; None if none did."""
    with snapshot(stores.engine) as connection:
        return read_refreshed_at(connection, run_id, user_id)


def read_refreshed_at(connection: sa.Connection, run_id: str, user_id: Id) -> datetime | None:
    """Do what `find_refreshed_at` does, over a connection."""
    types = column_types(connection, REFRESHED)
    if not types or (isinstance(user_id, str) and types[USER_ID] != "text"):
        return None
    query = sa.text(
        f"SELECT refreshed_at FROM {SCHEMA}.{REFRESHED} WHERE run_id = :run_id AND user_id = :user_id"
    )
    # Text is compared with bigint and with text.
    found: datetime | None = connection.scalar(query, {"run_id": run_id, "user_id": str(user_id)})
    return found


def _read_posts(
    connection: sa.Connection, post_ids: Sequence[Any], *, with_text: bool = True
) -> dict[str, dict[str, str | None]]:
    """Return post id as text -> `topic` and `text` of the posts that are in `recs.posts`."""
    types = column_types(connection, POSTS)
    if not post_ids:
        return {}
    columns = [name for name in (TOPIC, TEXT) if name in types and (with_text or name == TOPIC)]
    fields = "".join(f", left({name}::text, {MAX_TEXT}) AS {name}" for name in columns)
    wanted = id_array(post_ids, types[POST_ID])
    query = f"SELECT {POST_ID}::text AS id{fields} FROM {SCHEMA}.{POSTS} WHERE {POST_ID} = ANY({wanted})"
    rows = connection.exec_driver_sql(query, execution_options={"no_parameters": True}).mappings()
    return {row["id"]: {name: row[name] for name in columns} for row in rows}


def _in_utc(time: datetime) -> datetime:
    """Return a time of a view: one without a time zone is in UTC."""
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
