"""Who is due for a refresh: users whose actions are not those that their list was made of, and new users.

Timestamps cannot tell which actions a list already includes: actions are
entered late, with equal times, or with times that are still to come. So the
md5 fingerprint of each user's actions since shortly before the run's cutoff is
stored, and users are due whose fingerprint has changed. It is stored by the
night, as of its snapshot, and then whenever a user's new list is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from batch.arrays import Int64s
from contract.columns import SCHEMA

LATE = timedelta(hours=1)
"""An action that the night did not see, as it was entered so long after it happened, is found all the same.

Where it happened after the night's cutoff it is found however late it is entered.
"""

tables = sa.MetaData(schema=SCHEMA)
refreshed_users = sa.Table(
    "refreshed_users",
    tables,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.BigInteger, primary_key=True),
    sa.Column("actions", sa.Text),
    sa.Column("refreshed_at", sa.DateTime(timezone=True)),
)


@dataclass(frozen=True)
class Due:
    """Who is to be scored again.

    Attributes
    ----------
    marks
        User -> fingerprint of their actions now, None where they have none any
        more; of users whose fingerprint is not the one stored.
    users
        Those of them, and of the new users, who are to have a list, ascending.
    new
        How many users are new.
    unknown
        Those of `users` whom the night did not know, ascending.
    """

    marks: dict[int, str | None]
    users: list[int]
    new: int
    unknown: list[int]


def create(engine: sa.Engine) -> None:
    """Make the table where it is missing."""
    tables.create_all(engine)


def find(
    connection: sa.Connection, run_id: str, now: dict[int, str], user_ids: Int64s, known: Int64s, scored: int
) -> Due:
    """Find who is due in a run.

    Parameters
    ----------
    now
        User -> fingerprint of the actions since `LATE` before the run's cutoff
        and up to the clock. Actions with later times are due when their time has come.
    user_ids
        Users that the network has.
    known, scored
        Users that the night knew, and of how many of them, the first, it made
        lists. If not of all (--limit-users), nobody else is to have one.
    """
    stored, refreshed = _stored(connection, run_id)
    marks = {user: now.get(user) for user in now.keys() | stored.keys() if now.get(user) != stored.get(user)}
    present = user_ids.tolist()
    acted = marks.keys() & set(present)
    if scored < known.size:
        return Due(marks, sorted(acted.intersection(known[:scored].tolist())), 0, [])
    unknown = set(present).difference(known.tolist())
    new = unknown - refreshed
    return Due(marks, sorted(acted | new), len(new), sorted(unknown & (acted | new)))


def _stored(connection: sa.Connection, run_id: str) -> tuple[dict[int, str | None], set[int]]:
    """Return the stored fingerprints of a run, and the users whose lists were written since the night."""
    columns = refreshed_users.c
    rows = connection.execute(
        sa.select(columns.user_id, columns.actions, columns.refreshed_at).where(columns.run_id == run_id)
    ).all()
    return {row.user_id: row.actions for row in rows}, {row.user_id for row in rows if row.refreshed_at}


def note(
    connection: sa.Connection,
    run_id: str,
    found: Due,
    written: set[int],
    now: datetime,
    others: sa.Select[Any],
) -> None:
    """Store what was found, once it is written.

    Parameters
    ----------
    written
        Users whose lists were written.
    others
        Runs for which nothing needs to be stored any more; live again, they start anew.
    """
    connection.execute(sa.delete(refreshed_users).where(refreshed_users.c.run_id.in_(others)))
    _store(
        connection,
        [
            {
                "run_id": run_id,
                "user_id": user_id,
                "actions": found.marks.get(user_id),
                "refreshed_at": now if user_id in written else None,
            }
            for user_id in sorted({*found.marks, *found.users})
        ],
    )


def note_night(connection: sa.Connection, run_id: str, marks: dict[int, str]) -> None:
    """Store the fingerprints of the night's own snapshot, so that only users who act later are due."""
    _store(
        connection,
        [
            {"run_id": run_id, "user_id": user_id, "actions": mark, "refreshed_at": None}
            for user_id, mark in sorted(marks.items())
        ],
    )


def _store(connection: sa.Connection, rows: list[dict[str, Any]]) -> None:
    if rows:
        entered = insert(refreshed_users)
        fresh = {name: entered.excluded[name] for name in ("actions", "refreshed_at")}
        keys = list(refreshed_users.primary_key.columns)
        connection.execute(entered.on_conflict_do_update(index_elements=keys, set_=fresh), rows)


def refreshed_so_far(connection: sa.Connection, run_id: str) -> int:
    """Return how many users' lists were written anew since the night."""
    counted = sa.select(sa.func.count(refreshed_users.c.refreshed_at))
    return int(connection.scalar(counted.where(refreshed_users.c.run_id == run_id)) or 0)
