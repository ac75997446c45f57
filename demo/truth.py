"""Looks up in Postgres and Redis what an answer should say."""

from __future__ import annotations

from dataclasses import dataclass

import redis
import sqlalchemy as sa

from batch.loading.views import OPTIONAL, check_views
from contract import columns
from contract.codec import Ranked, decode_list
from contract.experiment import VARIANTS
from contract.keys import Keys

POST_TYPES = OPTIONAL[columns.POSTS]
LIKED = sa.text("SELECT post_id FROM recs.interactions WHERE action = 'like' AND user_id = :user")
LIKES = """
    SELECT post_id, {like_count} AS likes FROM recs.posts WHERE {like_count} IS NOT NULL
    UNION ALL
    SELECT post_id, coalesce(logged, 0) FROM recs.posts LEFT JOIN (
        SELECT post_id, count(*) AS logged FROM recs.interactions
        WHERE action = 'like' AND user_id IN (SELECT user_id FROM recs.users) GROUP BY post_id
    ) AS counted USING (post_id) WHERE {like_count} IS NULL
    ORDER BY 2 DESC, 1
"""
"""The network's own counter of a post, and where it has none the likes that are logged."""

WORDS = """
    SELECT post_id, coalesce({text}, ''), coalesce({topic}, '') FROM recs.posts WHERE post_id = ANY(:posts)
"""


@dataclass(frozen=True)
class Truth:
    """What the servers hold, read anew each time."""

    engine: sa.Engine
    client: redis.Redis
    keys: Keys

    def liked(self, user: int) -> set[int]:
        """Return the posts that the user has liked."""
        with self.engine.connect() as connection:
            return set(connection.scalars(LIKED, {"user": user}))

    def likes(self) -> dict[int, int]:
        """Return the likes of every post that may be served, the most liked first."""
        blocked = self.blocked()
        with self.engine.connect() as connection:
            found = connection.execute(_fill_in(connection, LIKES))
            return {post: likes for post, likes in found if post not in blocked}

    def words(self, posts: list[int]) -> dict[int, tuple[str, str]]:
        """Return text and topic of posts, empty where there is none."""
        with self.engine.connect() as connection:
            found = connection.execute(_fill_in(connection, WORDS), {"posts": posts})
            return {post: (text, topic) for post, text, topic in found}

    def stored(self, key: str) -> Ranked:
        """Return the list under a key; empty if there is none."""
        value = self.client.get(key)
        return [] if value is None else decode_list(str(value))

    def blocked(self) -> set[int]:
        """Return the posts never to be served."""
        return {int(post) for post in self.client.smembers(self.keys.blocked)}

    def live(self) -> set[str]:
        """Return the runs that are served."""
        return {str(self.client.get(self.keys.live(variant))) for variant in VARIANTS}


def _fill_in(connection: sa.Connection, query: str) -> sa.TextClause:
    """Fill in the optional columns of the posts' view: their names, or NULL where the network has none."""
    there = check_views(connection).posts
    names = {name: name if name in there else f"NULL::{types[0]}" for name, types in POST_TYPES.items()}
    return sa.text(query.format_map(names))
