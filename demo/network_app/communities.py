"""Communities: a community is a topic of posts, and people join it.

A topic may have no row of the table community: one that came with a post from elsewhere. It gets its row when
somebody joins.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from contract.ids import Id
from demo.network_app import activity
from demo.network_app.texts import InputError

MAX_NAME, MAX_ABOUT = 60, 300
"""Characters."""

MAX_COMMUNITIES = 200
"""Communities that a page lists."""

_LOCK = sa.text("SELECT pg_advisory_xact_lock(hashtextextended('community', 20))")
_SELECT = """
    SELECT coalesce(c.name, t.topic) AS name, coalesce(c.about, '') AS about, coalesce(t.posts, 0) AS posts,
        (SELECT count(*) FROM membership m WHERE m.community_id = c.id) AS members,
        EXISTS (SELECT 1 FROM membership m WHERE m.community_id = c.id AND m.user_id = :user) AS joined
    FROM community c FULL JOIN (
        SELECT topic, count(*) AS posts FROM recs.posts WHERE topic <> '' {of_topic} GROUP BY topic
    ) t ON t.topic = c.name
"""
_LIST = sa.text(f"{_SELECT.format(of_topic='')} ORDER BY joined DESC, posts DESC, name LIMIT :limit")
_ONE = sa.text(f"{_SELECT.format(of_topic='AND topic = :name')} WHERE coalesce(c.name, t.topic) = :name")
_TAKEN = sa.text("""
    SELECT name FROM community WHERE lower(name) = lower(:name)
    UNION ALL SELECT topic FROM recs.posts WHERE lower(topic) = lower(:name) LIMIT 1
""")
_INSERT = sa.text("INSERT INTO community (name, about, made_by) VALUES (:name, :about, :user) RETURNING id")
_INSERT_TOPIC = sa.text("""
    INSERT INTO community (name) SELECT topic FROM recs.posts WHERE topic = :name LIMIT 1
    ON CONFLICT (name) DO NOTHING
""")
_FIND = sa.text("SELECT id FROM community WHERE name = :name")
_JOIN = sa.text(
    "INSERT INTO membership (user_id, community_id) VALUES (:user, :community) ON CONFLICT DO NOTHING"
)
_LEAVE = sa.text("DELETE FROM membership WHERE user_id = :user AND community_id = :community")


@dataclass(frozen=True)
class Community:
    """A community as one person sees it: `joined` says whether they are a member."""

    name: str
    about: str
    posts: int
    members: int
    joined: bool


def list_communities(connection: sa.Connection, user_id: Id) -> list[Community]:
    """Return at most MAX_COMMUNITIES communities: first those a person joined, then those with most posts."""
    found = connection.execute(_LIST, {"user": user_id, "limit": MAX_COMMUNITIES}).mappings()
    return [Community(**row) for row in found]


def find_community(connection: sa.Connection, user_id: Id, name: str) -> Community | None:
    """Return the community of this very name; None if there is none."""
    row = connection.execute(_ONE, {"user": user_id, "name": name}).mappings().first()
    return None if row is None else Community(**row)


def found(connection: sa.Connection, user_id: Id, name: str, about: str) -> None:
    """Found a community, whose first member is its founder.

    Raises
    ------
    InputError
        There is one of this name, whatever its case.
    """
    connection.execute(_LOCK)
    taken = connection.scalar(_TAKEN, {"name": name})
    if taken is not None:
        raise InputError(f"There is a community {taken}: join it, or choose another name.")
    values = {"name": name, "about": about, "user": user_id}
    community_id = connection.execute(_INSERT, values).scalar_one()
    activity.record(connection, user_id, "found", done_to=community_id)
    _join(connection, user_id, community_id)


def join(connection: sa.Connection, user_id: Id, name: str) -> bool:
    """Make a person a member; return False if there is no such community."""
    connection.execute(_INSERT_TOPIC, {"name": name})
    community_id = connection.scalar(_FIND, {"name": name})
    if community_id is None:
        return False
    _join(connection, user_id, community_id)
    return True


def leave(connection: sa.Connection, user_id: Id, name: str) -> bool:
    """End a membership; return False if there is no such community."""
    community_id = connection.scalar(_FIND, {"name": name})
    if community_id is None:
        return False
    if connection.execute(_LEAVE, {"user": user_id, "community": community_id}).rowcount:
        activity.record(connection, user_id, "leave", done_to=community_id)
    return True


def _join(connection: sa.Connection, user_id: Id, community_id: int) -> None:
    if connection.execute(_JOIN, {"user": user_id, "community": community_id}).rowcount:
        activity.record(connection, user_id, "join", done_to=community_id)
