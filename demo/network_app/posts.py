"""Posts as pages show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from contract.ids import Id
from demo.network_app import activity

MAX_TITLE = 90
MAX_TEXT = 2_000
"""Characters of a new post."""

BY_TIME, BY_LIKES = "newest", "liked"
"""Orders of a community's posts."""

_LIKES = f"""(
    SELECT count(*) FROM (
        SELECT FROM recs.interactions i WHERE i.post_id = p.post_id AND action IN ('like', 'unlike')
        GROUP BY user_id HAVING {activity.IS_LIKED}
    ) AS liking
)"""
"""How many people like a post now: a person may have several rows of likes of one post."""

_POSTS = sa.text(f"""
    SELECT p.post_id, p.text, p.topic, p.author_id, p.created_at, a.name AS author, {_LIKES} AS likes
    FROM recs.posts p LEFT JOIN account a ON a.user_id = p.author_id
    WHERE p.post_id IN :posts
""").bindparams(sa.bindparam("posts", expanding=True))

_KEYS = {BY_TIME: "coalesce(p.created_at, '-infinity')", BY_LIKES: _LIKES}
_PAGE = """
    SELECT post_id FROM (SELECT p.post_id, {key} AS key FROM recs.posts p WHERE p.topic = :topic) AS keyed
    {after} ORDER BY key DESC, post_id DESC LIMIT :limit
"""
_AFTER = """WHERE (key, post_id) < (SELECT {key}, p.post_id FROM recs.posts p WHERE p.post_id = :after)"""


@dataclass(frozen=True)
class Post:
    """A post.

    Attributes
    ----------
    community
        Name of its community, which is its topic; None without one.
    author_id, author
        Who wrote it, and the name of their account; None if the network does not say.
    likes
        How many people like it now.
    """

    post_id: Id
    text: str
    community: str | None
    author_id: Id | None
    author: str | None
    created_at: datetime | None
    likes: int

    @property
    def title(self) -> str:
        """The first line of the text, shortened."""
        line = self.text.strip().partition("\n")[0].strip()
        return line if len(line) <= MAX_TITLE else f"{line[:MAX_TITLE].rstrip()}..."

    @property
    def body(self) -> str:
        """The text after its first line; the whole text if that line is long."""
        line, _, rest = self.text.strip().partition("\n")
        return rest.strip() if len(line) <= MAX_TITLE else self.text.strip()


def read_posts(connection: sa.Connection, post_ids: Sequence[Id]) -> dict[Id, Post]:
    """Return the posts of these ids that the network has, in the order of the ids."""
    if not post_ids:
        return {}
    rows = {
        activity.plain_id(row.post_id): row for row in connection.execute(_POSTS, {"posts": list(post_ids)})
    }
    return {post_id: _to_post(rows[post_id]) for post_id in post_ids if post_id in rows}


def read_community_page(
    connection: sa.Connection, community: str, order: str, limit: int, after: Id | None = None
) -> list[Post]:
    """Return posts of a community in an order, those after the post `after`; none if that post is gone."""
    condition = "" if after is None else _AFTER.format(key=_KEYS[order])
    query = sa.text(_PAGE.format(key=_KEYS[order], after=condition))
    parameters = {"topic": community, "limit": limit} | ({} if after is None else {"after": after})
    post_ids = [activity.plain_id(post_id) for (post_id,) in connection.execute(query, parameters)]
    return list(read_posts(connection, post_ids).values())


def write_post(connection: sa.Connection, key: str, author_id: Id, community: str, text: str) -> Id:
    """Add a post; the database gives its id and its time.

    Parameters
    ----------
    key
        Name of the primary key of the table post.
    """
    values = {"topic": community, "text": text, "author_id": author_id}
    inserted: Any = sa.insert(_table(key)).values(values).returning(sa.column(key))
    post_id = activity.plain_id(connection.execute(inserted).scalar_one())
    activity.record(connection, author_id, "post", post_id=post_id)
    return post_id


def delete_post(connection: sa.Connection, key: str, author_id: Id, post_id: Id) -> bool:
    """Delete a person's own post; return False if it is gone already, or another's.

    What people did with it stays in the activity; nothing is learnt from posts that are gone.
    """
    table = _table(key)
    its = (table.c[key] == post_id, table.c.author_id == author_id)
    if not connection.execute(sa.delete(table).where(*its)).rowcount:
        return False
    activity.record(connection, author_id, "delete", post_id=post_id)
    return True


def _table(key: str) -> sa.TableClause:
    return sa.table("post", *map(sa.column, dict.fromkeys((key, "topic", "text", "author_id"))))


def _to_post(row: Any) -> Post:
    author = None if row.author_id is None else activity.plain_id(row.author_id)
    return Post(
        activity.plain_id(row.post_id),
        row.text or "",
        row.topic,
        author,
        row.author,
        row.created_at,
        row.likes,
    )
