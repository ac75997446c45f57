"""Tables of the network's app, and the parts of the three views that read them.

| table | a row is |
|---|---|
| account | a person who registered, with name and password; the profile is in "user" |
| community | a topic of posts |
| membership | a person in a community |
| message | a message between two people |
| activity | one thing that a person did, with its time |
| shown_list | the list that a person's feed showed last, and the one before it |

Rows of `activity` are only added; `undone_at` of a like is set when it is taken back. No view of `recs` reads
accounts or messages.
"""

from __future__ import annotations

from contract.ids import IdKind, IdKinds

NAMES = ("account", "community", "membership", "message", "activity", "shown_list")

ID_TYPES = {IdKind.NUMBER: "bigint", IdKind.UUID: "uuid", IdKind.TEXT: "text"}

TABLES = """
CREATE TABLE account (
    user_id {user} PRIMARY KEY, name text NOT NULL, name_key text NOT NULL UNIQUE,
    password_hash text NOT NULL,
    epoch bigint NOT NULL DEFAULT floor(random() * 1e15), created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE community (
    id bigserial PRIMARY KEY, name text NOT NULL UNIQUE, about text NOT NULL DEFAULT '',
    made_by {user}, made_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE membership (
    user_id {user} NOT NULL, community_id bigint NOT NULL REFERENCES community,
    joined_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (user_id, community_id)
);
CREATE TABLE message (
    id bigserial PRIMARY KEY, from_id {user} NOT NULL REFERENCES account,
    to_id {user} NOT NULL REFERENCES account,
    text text NOT NULL, sent_at timestamptz NOT NULL DEFAULT now(), read_at timestamptz
);
CREATE INDEX message_to ON message (to_id, id);
CREATE INDEX message_from ON message (from_id, id);
CREATE TABLE activity (
    id bigserial PRIMARY KEY, user_id {user} NOT NULL, kind text NOT NULL, post_id {post}, object_id text,
    visit uuid, at timestamptz NOT NULL DEFAULT clock_timestamp(), undone_at timestamptz
);
CREATE UNIQUE INDEX activity_like ON activity (user_id, post_id) WHERE kind = 'like' AND undone_at IS NULL;
CREATE UNIQUE INDEX activity_view ON activity (user_id, post_id, visit) WHERE kind = 'view';
CREATE INDEX activity_at ON activity (at);
CREATE INDEX activity_user_at ON activity (user_id, at);
CREATE INDEX activity_post_at ON activity (post_id, at);
CREATE TABLE shown_list (user_id {user} PRIMARY KEY, list jsonb NOT NULL, before jsonb)"""
"""`account.name_key` is the name as `accounts.make_name_key` makes it, whatever its case.

`activity.object_id` names what else it was done to: a community, a person, a message.
"""

DEFAULT_IDS = {
    IdKind.NUMBER: """
CREATE SEQUENCE {sequence};
SELECT setval('{sequence}', (SELECT coalesce(max({key}), 0) + 1 FROM {table}), false);
ALTER TABLE {table} ALTER {key} SET DEFAULT nextval('{sequence}');
ALTER SEQUENCE {sequence} OWNED BY {table}.{key}""",
    IdKind.UUID: "ALTER TABLE {table} ALTER {key} SET DEFAULT gen_random_uuid()",
    IdKind.TEXT: "ALTER TABLE {table} ALTER {key} SET DEFAULT gen_random_uuid()::text",
}
"""Statements that give new rows an id of the network's kind."""

POST_COLUMNS = {"topic": "text", "text": "text", "created_at": "timestamptz", "author_id": "{user}"}
"""Columns that a new post fills in; added to networks that have none."""

COMMUNITIES = """
INSERT INTO community (name)
SELECT DISTINCT topic FROM post WHERE topic IS NOT NULL AND length(topic) BETWEEN 1 AND 60
ORDER BY topic"""

INTERACTIONS_VIEW = """
CREATE VIEW recs.interactions AS
SELECT user_id, post_id, action, time AS happened_at
FROM feed_action
UNION ALL
SELECT user_id, post_id, kind, at
FROM activity
WHERE kind IN ('view', 'like', 'unlike')"""

COUNTERS = {
    "view_count": "(SELECT count(*) FROM activity WHERE post_id = {post} AND kind = 'view')",
    "like_count": """(
        SELECT count(*) FROM activity WHERE post_id = {post} AND kind = 'like' AND undone_at IS NULL
    ) - (SELECT coalesce(sum(taken_back), 0)::bigint FROM
        (SELECT DISTINCT user_id FROM activity WHERE post_id = {post} AND kind = 'unlike') AS unliking,
        LATERAL (SELECT count(*) AS taken_back FROM feed_action
            WHERE user_id = unliking.user_id AND post_id = {post} AND action = 'like') AS earlier)""",
}
"""What the app adds to a network's own counters. An unlike takes back every like of the person in the loaded
network, where a person may have liked a post more than once."""


READ_KEY = """
SELECT attname FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
WHERE indisprimary AND indrelid = CAST(:table AS regclass)"""
"""The name of a table's primary key, which is one column."""


READ_IDENTITY = """
SELECT encode(sha256(convert_to(system_identifier || ' ' || current_database(), 'UTF8')), 'hex')
FROM pg_control_system()"""
"""Which database it is, in a form that tells nothing else of it."""


def create_tables_ddl(kinds: IdKinds) -> str:
    """Return the statements that create the app's tables for ids of these kinds."""
    return TABLES.format(user=ID_TYPES[kinds.users], post=ID_TYPES[kinds.posts])


def extend_tables_ddl(kinds: IdKinds, user_key: str, post_key: str) -> list[str]:
    """Return the statements after which the loaded tables "user" and post take new rows.

    Parameters
    ----------
    user_key, post_key
        Names of their primary keys, quoted.
    """
    columns = ", ".join(
        f"ADD COLUMN IF NOT EXISTS {name} {kind.format(user=ID_TYPES[kinds.users])}"
        for name, kind in POST_COLUMNS.items()
    )
    return [
        f"ALTER TABLE post {columns}",
        "ALTER TABLE post ALTER created_at SET DEFAULT now()",
        "CREATE INDEX post_topic ON post (topic, created_at)",
        "CREATE INDEX post_author ON post (author_id)",
        DEFAULT_IDS[kinds.users].format(sequence="user_ids", table='"user"', key=user_key),
        DEFAULT_IDS[kinds.posts].format(sequence="post_ids", table="post", key=post_key),
        COMMUNITIES,
    ]
