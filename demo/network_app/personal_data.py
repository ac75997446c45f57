"""All that the network knows about a person, as they may have it in a file."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from contract.ids import Id

_QUERIES = {
    "account": "SELECT name, created_at FROM account WHERE user_id = :user",
    "posts": "SELECT * FROM recs.posts WHERE author_id = :user ORDER BY created_at, post_id",
    "communities": """
        SELECT community.name, joined_at FROM membership
        JOIN community ON community.id = membership.community_id
        WHERE user_id = :user ORDER BY joined_at""",
    "communities_founded": "SELECT name, about, made_at FROM community WHERE made_by = :user ORDER BY id",
    "messages": """
        SELECT from_id, to_id, text, sent_at, read_at FROM message
        WHERE :user IN (from_id, to_id) ORDER BY id""",
    "activity": """
        SELECT kind, post_id, object_id, visit, at, undone_at FROM activity
        WHERE user_id = :user ORDER BY id""",
    "loaded_interactions": """
        SELECT post_id, action, time FROM feed_action WHERE user_id = :user ORDER BY time, post_id""",
    "feed": "SELECT list, before FROM shown_list WHERE user_id = :user",
}
"""Part -> its rows; `loaded_interactions` are those that the network was loaded with."""


def read_personal_data(connection: sa.Connection, user_key: str, user_id: Id) -> dict[str, Any]:
    """Return the rows about a person, by part; without the hash of their password.

    Parameters
    ----------
    user_key
        Name of the primary key of the table "user".
    """
    key: sa.ColumnClause[Any] = sa.column(user_key)
    profile = sa.select(sa.text("*")).select_from(sa.table("user", key)).where(key == user_id)
    found = {"profile": _read(connection, profile)}
    for part, query in _QUERIES.items():
        found[part] = _read(connection, sa.text(query), {"user": user_id})
    return found


def _read(
    connection: sa.Connection, query: sa.Executable, parameters: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(query, parameters or {}).mappings()]
