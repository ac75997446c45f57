"""Why a post is in a person's list, in a few words. The model's own account is `explain`.

The first that holds is said:

1. the post is in an explored place;
2. it is similar to one of the person's newest likes;
3. the person likes posts of its community more often than posts in general;
4. the post is new in a community that the person joined;
5. the list is of popular posts;
6. the model ranks it so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from batch.formatting import one_line
from contract.ids import Id
from contract.score_kind import POPULAR
from demo.network_app import activity
from demo.network_app.context import NetworkApp, Person
from demo.network_app.posts import Post, read_posts
from demo.network_app.serving import ServedList
from demo.network_app.similar import similar_posts

MAX_LIKES = 5
"""Newest likes whose similar posts are asked for, in parallel."""

MAX_TITLE = 60
MIN_LIKES = 2
NEW = timedelta(days=7)
EXPLORED = "new: shown to learn who likes it"

_TOPICS = sa.text(f"""
    SELECT topic, count(*) FILTER (WHERE liked) AS likes, count(*) AS seen
    FROM recs.posts JOIN (
        SELECT post_id, {activity.IS_LIKED} AS liked
        FROM recs.interactions WHERE user_id = :user GROUP BY post_id
    ) AS done USING (post_id)
    GROUP BY topic
""")
_JOINED = sa.text(
    "SELECT name FROM membership JOIN community ON community.id = community_id WHERE user_id = :user"
)


@dataclass(frozen=True)
class _Taste:
    """What a person likes: (likes, seen posts) of each topic, and the communities that they joined."""

    topics: Mapping[str | None, tuple[int, int]]
    joined: frozenset[str]

    def prefers(self, topic: str) -> bool:
        """Return whether the person likes posts of a topic at least as often as posts in general."""
        likes, seen = self.topics.get(topic, (0, 0))
        all_likes = sum(likes for likes, _ in self.topics.values())
        all_seen = sum(seen for _, seen in self.topics.values())
        return likes >= MIN_LIKES and likes * all_seen >= all_likes * seen


def find_reasons(
    app: NetworkApp,
    connection: sa.Connection,
    person: Person,
    served: ServedList | None,
    posts: Iterable[Post],
) -> dict[Id, str]:
    """Return why each post is in a person's list: post -> a few words. Posts without a reason are left out.

    Parameters
    ----------
    served
        The person's list; None if it is not at hand: then the first reason and the last two are not found.
    """
    posts = list(posts)
    if not posts:
        return {}
    liked = [post_id for post_id, _ in activity.read_likes(connection, person.user_id, MAX_LIKES)]
    similar = similar_posts.find(app, person.user_id, liked)
    like_of: dict[Id, Id] = {}  # a similar post -> the newest like that it is similar to
    for like, found in zip(liked, similar, strict=True):
        like_of |= {post_id: like for post_id in found or () if post_id not in like_of}
    titles = {like: post.title for like, post in read_posts(connection, liked).items() if post.title}
    taste = _read_taste(connection, person.user_id)
    explored = {each.post_id for each in served.posts if each.explored} if served else set()
    reasons = {}
    for post in posts:
        if post.post_id in explored:
            reasons[post.post_id] = EXPLORED
        elif like_of.get(post.post_id) in titles:
            title = one_line(titles[like_of[post.post_id]], MAX_TITLE)
            reasons[post.post_id] = f"like “{title}”, which you liked"
        elif reason := _by_community(taste, post) or _by_list(served, post):
            reasons[post.post_id] = reason
    return reasons


def _by_community(taste: _Taste, post: Post) -> str:
    if post.community is None:
        return ""
    if taste.prefers(post.community):
        likes, seen = taste.topics[post.community]
        return f"you liked {likes} of {seen} in {post.community}"
    if post.community in taste.joined and post.created_at and datetime.now(UTC) - post.created_at < NEW:
        return "new in a community you joined"
    return ""


def _by_list(served: ServedList | None, post: Post) -> str:
    rank = next((each.rank for each in served.posts if each.post_id == post.post_id), 0) if served else 0
    if served is None or not rank:
        return ""
    if served.source == POPULAR:
        return f"popular: liked by {post.likes:,}"
    return f"the model ranks it {_ordinal(rank)} for you"


def _ordinal(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"


def _read_taste(connection: sa.Connection, user_id: Id) -> _Taste:
    topics = connection.execute(_TOPICS, {"user": user_id})
    joined = connection.scalars(_JOINED, {"user": user_id})
    return _Taste({row.topic: (row.likes, row.seen) for row in topics}, frozenset(joined))
