"""Messages between two people with accounts. No view of `recs` reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from contract.errors import OvernightError
from contract.ids import Id
from demo.network_app import activity

MAX_TEXT = 2_000
"""Characters of a message."""

MAX_MESSAGES = 30
"""A person's messages in a minute."""

_INBOX = sa.text("""
    SELECT m.id, m.text, m.sent_at, m.from_id, m.other_id, account.name,
        (SELECT count(*) FROM message u
         WHERE u.to_id = :user AND u.from_id = m.other_id AND u.read_at IS NULL) AS unread
    FROM (
        SELECT DISTINCT ON (other_id) * FROM (
            SELECT *, to_id AS other_id FROM message WHERE from_id = :user
            UNION ALL SELECT *, from_id FROM message WHERE to_id = :user
        ) mine ORDER BY other_id, id DESC
    ) m JOIN account ON account.user_id = m.other_id
    WHERE m.id < :before ORDER BY m.id DESC LIMIT :limit
""")
_THREAD = sa.text("""
    SELECT id, text, sent_at, from_id, read_at FROM message
    WHERE ((from_id = :user AND to_id = :other) OR (from_id = :other AND to_id = :user)) AND id < :before
    ORDER BY id DESC LIMIT :limit
""")
_UNREAD = sa.text("SELECT count(*) FROM message WHERE to_id = :user AND read_at IS NULL")
_READ = sa.text("""
    UPDATE message SET read_at = clock_timestamp()
    WHERE to_id = :user AND from_id = :other AND id <= :last AND read_at IS NULL
""")
_LOCK = sa.text("SELECT 1 FROM account WHERE user_id = :user FOR NO KEY UPDATE")
_IS_BUSY = sa.text("""
    SELECT sent_at > clock_timestamp() - interval '1 minute' FROM message
    WHERE from_id = :user ORDER BY id DESC OFFSET :max LIMIT 1
""")
_INSERT = sa.text("""
    INSERT INTO message (from_id, to_id, text, sent_at)
    VALUES (:user, :other, :text, clock_timestamp()) RETURNING id
""")


class TooManyMessagesError(OvernightError):
    """Raised when a person has sent `MAX_MESSAGES` within a minute."""


@dataclass(frozen=True)
class Message:
    """A message of a thread. `mine` says that the reader of the thread wrote it."""

    message_id: int
    text: str
    sent_at: datetime
    mine: bool
    read_at: datetime | None


@dataclass(frozen=True)
class Thread:
    """The newest message with a person, and how many of theirs are not read."""

    person_id: Id
    name: str
    last: Message
    unread: int


def list_threads(connection: sa.Connection, user_id: Id, before: int, limit: int) -> list[Thread]:
    """Return a person's threads, newest first, whose last message has an id below `before`."""
    rows = connection.execute(_INBOX, {"user": user_id, "before": before, "limit": limit})
    return [
        Thread(row.other_id, row.name, _to_message(row, user_id, read_at=None), row.unread) for row in rows
    ]


def list_messages(
    connection: sa.Connection, user_id: Id, other_id: Id, *, before: int, limit: int
) -> list[Message]:
    """Return the messages between two people with an id below `before`, newest first."""
    parameters = {"user": user_id, "other": other_id, "before": before, "limit": limit}
    return [_to_message(row, user_id, row.read_at) for row in connection.execute(_THREAD, parameters)]


def count_unread(connection: sa.Connection, user_id: Id) -> int:
    """Return how many messages to a person are not read."""
    return int(connection.execute(_UNREAD, {"user": user_id}).scalar_one())


def mark_read(connection: sa.Connection, user_id: Id, other_id: Id, last: int) -> None:
    """Note that a person has read what another wrote to them, up to the message `last`."""
    connection.execute(_READ, {"user": user_id, "other": other_id, "last": last})


def send(connection: sa.Connection, user_id: Id, other_id: Id, text: str) -> None:
    """Send a message. The sender has then read what it answers.

    Raises
    ------
    TooManyMessagesError
        The person has sent too many within the last minute.
    """
    connection.execute(_LOCK, {"user": user_id})
    if connection.execute(_IS_BUSY, {"user": user_id, "max": MAX_MESSAGES - 1}).scalar():
        raise TooManyMessagesError(
            f"You have sent {MAX_MESSAGES} messages within a minute; this one was not sent: wait a minute, "
            "then send it again"
        )
    sent = connection.execute(_INSERT, {"user": user_id, "other": other_id, "text": text}).scalar_one()
    mark_read(connection, user_id, other_id, sent)
    activity.record(connection, user_id, "message", done_to=sent)


def newest_of_other(messages: Sequence[Message]) -> int | None:
    """Return the id of the newest message that the other person wrote and that is not read."""
    return next((each.message_id for each in messages if not each.mine and each.read_at is None), None)


def _to_message(row: sa.Row, user_id: Id, read_at: datetime | None) -> Message:  # type: ignore[type-arg]
    return Message(row.id, row.text, row.sent_at, row.from_id == user_id, read_at)
