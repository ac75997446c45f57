"""Who is due for a refresh: users whose actions are not those that their list was made of, and new users.

No point in time divides what a list knows from what it does not: actions are
entered late, with equal times, or with times that are still to come. So each
user's actions since shortly before the run's cutoff are summed up in a mark,
and users are due whose mark differs from the one kept when they were last
refreshed. A mark is kept only once the user's list is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from batch.arrays import Int64s
from contract.columns import INTERACTIONS, LIKE_ACTION, SCHEMA, USERS, VIEW_ACTION

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

CHANGED = sa.text(f"""
    SELECT coalesce(found.user_id, kept.user_id) AS user_id, found.actions
    FROM (
        SELECT user_id::bigint, md5(string_agg(
            concat_ws(' ', post_id, action, happened_at), ',' ORDER BY happened_at, post_id, action
        )) AS actions
        FROM {SCHEMA}.{INTERACTIONS}
        WHERE happened_at > :since AND happened_at <= :clock AND action IN ('{VIEW_ACTION}', '{LIKE_ACTION}')
          AND user_id IS NOT NULL AND post_id IS NOT NULL
        GROUP BY 1
    ) found
    FULL JOIN (SELECT user_id, actions FROM {SCHEMA}.{refreshed_users.name} WHERE run_id = :run_id) kept
      USING (user_id)
    WHERE found.actions IS DISTINCT FROM kept.actions
""")
OF_THE_NETWORK = sa.text(
    f"SELECT user_id FROM {SCHEMA}.{USERS} WHERE user_id IN (SELECT unnest(CAST(:users AS bigint[])))"
)
NEW = sa.text(f"""
    SELECT user_id FROM {SCHEMA}.{USERS} WHERE user_id IS NOT NULL
    EXCEPT SELECT unnest(CAST(:known AS bigint[]))
    EXCEPT
    SELECT user_id FROM {SCHEMA}.{refreshed_users.name} WHERE run_id = :run_id AND refreshed_at IS NOT NULL
""")


@dataclass(frozen=True)
class Due:
    """Who is to be scored again.

    Attributes
    ----------
    marks
        User -> sum of their actions now, None where they have none any more;
        of users whose sum is not the one kept.
    users
        Those of them, and of the new users, who are to have a list, ascending.
    new
        How many users are new.
    """

    marks: dict[int, str | None]
    users: list[int]
    new: int


def create(engine: sa.Engine) -> None:
    """Make the table where it is missing."""
    tables.create_all(engine)


def find(
    connection: sa.Connection, run_id: str, cutoff: datetime, clock: datetime, known: Int64s, scored: int
) -> Due:
    """Find who is due in a run, by what is known at the clock.

    Actions with later times than the clock are due when their time has come.

    Parameters
    ----------
    cutoff
        The night saw what happened up to then, as far as it was entered.
    known, scored
        Users that the night knew, and of how many of them, the first, it made
        lists. If not of all (--limit-users), nobody else is to have one.
    """
    when = {"run_id": run_id, "since": cutoff - LATE, "clock": clock}
    marks = {row.user_id: row.actions for row in connection.execute(CHANGED, when)}
    acted = connection.scalars(OF_THE_NETWORK, {"users": _as_array(marks)}).all()
    if scored < known.size:
        return Due(marks, sorted({*acted}.intersection(known[:scored].tolist())), 0)
    new = connection.scalars(NEW, {"known": _as_array(known.tolist()), "run_id": run_id}).all()
    return Due(marks, sorted({*acted, *new}), len(new))


def _as_array(user_ids: Iterable[int]) -> str:
    """Write ids as Postgres writes an array: a hundred thousand of them are one word to the driver."""
    return "{" + ",".join(map(str, user_ids)) + "}"


def note(
    connection: sa.Connection,
    run_id: str,
    found: Due,
    written: set[int],
    now: datetime,
    others: sa.Select[Any],
) -> None:
    """Keep what was found, once it is written.

    Parameters
    ----------
    written
        Users whose lists were written.
    others
        Runs for which nothing needs to be kept any more; live again, they start anew.
    """
    connection.execute(sa.delete(refreshed_users).where(refreshed_users.c.run_id.in_(others)))
    rows = [
        {
            "run_id": run_id,
            "user_id": user_id,
            "actions": found.marks.get(user_id),
            "refreshed_at": now if user_id in written else None,
        }
        for user_id in sorted({*found.marks, *found.users})
    ]
    if rows:
        entered = insert(refreshed_users)
        fresh = {name: entered.excluded[name] for name in ("actions", "refreshed_at")}
        keys = list(refreshed_users.primary_key.columns)
        connection.execute(entered.on_conflict_do_update(index_elements=keys, set_=fresh), rows)


def refreshed_so_far(connection: sa.Connection, run_id: str) -> int:
    """Return how many users' lists were written anew since the night."""
    counted = sa.select(sa.func.count(refreshed_users.c.refreshed_at))
    return int(connection.scalar(counted.where(refreshed_users.c.run_id == run_id)) or 0)
