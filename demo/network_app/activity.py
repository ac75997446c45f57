"""What people do: each thing is a row of the table activity, with its time.

The view recs.interactions has views, likes and unlikes, so that the models learn from them:

- a post is viewed once per person and visit, however often the page is loaded;
- a like comes after a view of the same visit, and an unlike after its like;
- nobody likes what they like already, or their own posts.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from contract.columns import LIKE_ACTION, UNLIKE_ACTION
from contract.ids import Id

_LOCK = sa.text("SELECT pg_advisory_xact_lock(hashtextextended(CAST(:user AS text), 20))")
_INSERT = sa.text(
    "INSERT INTO activity (user_id, kind, post_id, object_id, visit) "
    "VALUES (:user, :kind, :post, :object, CAST(:visit AS uuid)) ON CONFLICT DO NOTHING"
)
_VIEW = sa.text(
    "INSERT INTO activity (user_id, kind, post_id, visit) "
    "SELECT :user, 'view', post_id, CAST(:visit AS uuid) FROM recs.posts "
    "WHERE post_id IN :posts AND author_id IS DISTINCT FROM :user ON CONFLICT DO NOTHING"
).bindparams(sa.bindparam("posts", expanding=True))
_UNDO = sa.text(
    "UPDATE activity SET undone_at = clock_timestamp() "
    "WHERE user_id = :user AND post_id = :post AND kind = 'like' AND undone_at IS NULL"
)
LIKED_AT = "max(happened_at) FILTER (WHERE action = 'like')"
IS_LIKED = f"{LIKED_AT} > coalesce(max(happened_at) FILTER (WHERE action = 'unlike'), '-infinity')"
"""Whether one person likes one post now, of the rows of recs.interactions of both; null if they never did."""

_LIKES = f"""
    SELECT post_id, {LIKED_AT} AS liked_at
    FROM recs.interactions WHERE user_id = :user AND action IN ('like', 'unlike') {{among}}
    GROUP BY post_id HAVING {IS_LIKED} ORDER BY 2 DESC, 1 {{limit}}
"""
_IS_LIKABLE = sa.text("SELECT 1 FROM recs.posts WHERE post_id = :post AND author_id IS DISTINCT FROM :user")


def record(
    connection: sa.Connection, user_id: Id, kind: str, *, post_id: Id | None = None, done_to: Any = None
) -> None:
    """Record that a person did something other than view, like or unlike.

    Parameters
    ----------
    done_to
        The id of what it was done to if that is no post: a community, a person, a message.
    """
    done = None if done_to is None else str(done_to)
    _insert(connection, user_id, kind, post_id, done_to=done)


def view(connection: sa.Connection, user_id: Id, post_ids: Sequence[Id], visit: str) -> int:
    """Record that a person saw posts in a visit; return how many of them they had not seen in it.

    Unknown posts and the person's own are left out, and those they like: a view after the like would teach
    that the person saw the post and did not like it.
    """
    liked = liked_among(connection, user_id, post_ids)
    seen = [post_id for post_id in post_ids if post_id not in liked]
    if not seen:
        return 0
    return connection.execute(_VIEW, {"user": user_id, "posts": seen, "visit": visit}).rowcount


def like(connection: sa.Connection, user_id: Id, post_id: Id, visit: str) -> bool:
    """Record a like, after a view; return False if nothing changed.

    That is so if the person likes the post already or wrote it, or if there is no such post.
    """
    connection.execute(_LOCK, {"user": str(user_id)})
    if liked_among(connection, user_id, [post_id]) or not _is_likable(connection, user_id, post_id):
        return False
    view(connection, user_id, [post_id], visit)
    _insert(connection, user_id, LIKE_ACTION, post_id, visit=visit)
    return True


def unlike(connection: sa.Connection, user_id: Id, post_id: Id, visit: str) -> bool:
    """Take a like back, however old it is; return False if the person does not like the post."""
    connection.execute(_LOCK, {"user": str(user_id)})
    if not liked_among(connection, user_id, [post_id]):
        return False
    connection.execute(_UNDO, {"user": user_id, "post": post_id})
    _insert(connection, user_id, UNLIKE_ACTION, post_id, visit=visit)
    return True


def liked_among(connection: sa.Connection, user_id: Id, post_ids: Sequence[Id]) -> set[Id]:
    """Return which of the posts a person likes now."""
    if not post_ids:
        return set()
    query = sa.text(_LIKES.format(among="AND post_id IN :posts", limit=""))
    found = connection.execute(
        query.bindparams(sa.bindparam("posts", expanding=True)), {"user": user_id, "posts": list(post_ids)}
    )
    return {plain_id(post_id) for post_id, _ in found}


def read_likes(
    connection: sa.Connection, user_id: Id, limit: int, offset: int = 0
) -> list[tuple[Id, datetime]]:
    """Return posts that a person likes now, and since when, the newest likes first."""
    query = sa.text(_LIKES.format(among="", limit="LIMIT :limit OFFSET :offset"))
    found = connection.execute(query, {"user": user_id, "limit": limit, "offset": offset})
    return [(plain_id(post_id), liked_at) for post_id, liked_at in found]


def _insert(
    connection: sa.Connection,
    user_id: Id,
    kind: str,
    post_id: Id | None,
    *,
    done_to: str | None = None,
    visit: str | None = None,
) -> None:
    row = {"user": user_id, "kind": kind, "post": post_id, "object": done_to, "visit": visit}
    connection.execute(_INSERT, row)


def _is_likable(connection: sa.Connection, user_id: Id, post_id: Id) -> bool:
    return connection.execute(_IS_LIKABLE, {"user": user_id, "post": post_id}).first() is not None


def plain_id(value: Any) -> Id:
    """Return an id as the rest of the program has it: uuids as text."""
    return value if isinstance(value, int) else str(value)
