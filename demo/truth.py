"""Looks up in Postgres and Redis what an answer should say."""

from __future__ import annotations

from dataclasses import dataclass

import redis
import sqlalchemy as sa

from contract.codec import Ranked, decode_list
from contract.experiment import VARIANTS
from contract.keys import Keys

LIKED = sa.text("SELECT post_id FROM recs.interactions WHERE action = 'like' AND user_id = :user")
LIKES = sa.text("SELECT post_id, coalesce(like_count, 0) FROM recs.posts ORDER BY 2 DESC, 1")
WORDS = sa.text(
    "SELECT post_id, coalesce(text, ''), coalesce(topic, '') FROM recs.posts WHERE post_id = ANY(:posts)"
)


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
            return {post: likes for post, likes in connection.execute(LIKES) if post not in blocked}

    def words(self, posts: list[int]) -> dict[int, tuple[str, str]]:
        """Return text and topic of posts, empty where there is none."""
        with self.engine.connect() as connection:
            return {post: (text, topic) for post, text, topic in connection.execute(WORDS, {"posts": posts})}

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
