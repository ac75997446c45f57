"""Posts as pages show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from contract.ids import Id
from demo.network_app.activity import plain_id

MAX_TITLE = 90

_POSTS = sa.text("""
    SELECT p.post_id, p.text, p.topic, p.author_id, p.created_at, a.name AS author,
        (SELECT count(*) FILTER (WHERE action = 'like') - count(*) FILTER (WHERE action = 'unlike')
         FROM recs.interactions i WHERE i.post_id = p.post_id AND i.action IN ('like', 'unlike')) AS likes
    FROM recs.posts p LEFT JOIN account a ON a.user_id = p.author_id
    WHERE p.post_id IN :posts
""").bindparams(sa.bindparam("posts", expanding=True))


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
    rows = {plain_id(row.post_id): row for row in connection.execute(_POSTS, {"posts": list(post_ids)})}
    return {post_id: _to_post(rows[post_id]) for post_id in _once(post_ids) if post_id in rows}


def _to_post(row: Any) -> Post:
    author = None if row.author_id is None else plain_id(row.author_id)
    return Post(
        plain_id(row.post_id), row.text or "", row.topic, author, row.author, row.created_at, row.likes
    )


def _once(post_ids: Iterable[Id]) -> list[Id]:
    return list(dict.fromkeys(post_ids))
