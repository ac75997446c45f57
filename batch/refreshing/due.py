"""Who is due for a refresh: users whose actions are not those that their list was made of, and new users.

No point in time divides what a list knows from what it does not: actions are
entered late, with equal times, or with times that are still to come. So each
user's actions since shortly before the run's cutoff are summed up in a mark,
and users are due whose mark differs from the one kept when they were last
refreshed. A mark is kept only once the user's list is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import redis
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from batch.publishing.store import blocks
from contract.columns import INTERACTIONS, LIKE_ACTION, SCHEMA, USERS, VIEW_ACTION
from contract.keys import Keys

LATE = timedelta(hours=1)
"""An action that the night did not see, as it was entered this long after it happened, is found all the same.

Where it happened after the night's cutoff it is found however late it is entered.
"""

KEYS_AT_A_TIME = 5_000

tables = sa.MetaData(schema=SCHEMA)
time = sa.DateTime(timezone=True)
refreshes = sa.Table(
    "refreshes",
    tables,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("refreshed_at", time, nullable=False),
    sa.Column("users_seen", sa.Text, nullable=False),
)
refreshed_users = sa.Table(
    "refreshed_users",
    tables,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.BigInteger, primary_key=True),
    sa.Column("actions", sa.Text),
    sa.Column("refreshed_at", time),
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
    ORDER BY 1
""")
USERS_SEEN = sa.text(f"""
    SELECT count(*) || ' ' || coalesce(sum(hashint8extended(user_id::bigint, 0)::numeric), 0)
    FROM {SCHEMA}.{USERS}
""")
USER_IDS = sa.text(f"SELECT user_id FROM {SCHEMA}.{USERS} WHERE user_id IS NOT NULL ORDER BY 1")


@dataclass(frozen=True)
class Due:
    """Who is to be scored again.

    Attributes
    ----------
    marks
        User -> sum of their actions now, None where they have none any more;
        of users whose sum is not the one kept.
    new
        Users of the network who have no list in the run.
    users_seen
        Sum of the ids of all users: while it stays, nobody is new.
    settled
        Nothing is to be noted: nobody is due, and `users_seen` is the one kept.
    """

    marks: dict[int, str | None]
    new: list[int]
    users_seen: str
    settled: bool

    @property
    def user_ids(self) -> list[int]:
        """Everybody due, ascending."""
        return sorted({*self.marks, *self.new})


def create(engine: sa.Engine) -> None:
    """Make the tables where they are missing."""
    tables.create_all(engine)


def find(
    engine: sa.Engine,
    client: redis.Redis,
    keys: Keys,
    run_id: str,
    cutoff: datetime,
    clock: datetime,
    *,
    with_new: bool,
) -> Due:
    """Find who is due in a run whose night saw everything up to `cutoff`, by what is known at `clock`.

    Actions with later times than the clock are due when their time has come.
    """
    when = {"run_id": run_id, "since": cutoff - LATE, "clock": clock}
    kept = sa.select(refreshes.c.users_seen).where(refreshes.c.run_id == run_id)
    with engine.connect() as connection:
        marks = {row.user_id: row.actions for row in connection.execute(CHANGED, when)}
        users_seen, users_kept = str(connection.scalar(USERS_SEEN)), connection.scalar(kept)
        grown = with_new and users_seen != users_kept
        user_ids = connection.scalars(USER_IDS).all() if grown else []
    new = without_list(client, keys, run_id, user_ids)
    return Due(marks, new, users_seen, settled=users_seen == users_kept and not marks)


def without_list(client: redis.Redis, keys: Keys, run_id: str, user_ids: Any) -> list[int]:
    """Return those of the users who have no list in a run."""
    without = []
    for block in blocks(user_ids, KEYS_AT_A_TIME):
        with client.pipeline(transaction=False) as pipe:
            for user_id in block:
                pipe.exists(keys.user(run_id, user_id))
            without += [user_id for user_id, there in zip(block, pipe.execute(), strict=True) if not there]
    return without


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
    for table in (refreshes, refreshed_users):
        connection.execute(sa.delete(table).where(table.c.run_id.in_(others)))
    _upsert(
        connection,
        refreshes,
        [{"run_id": run_id, "refreshed_at": now, "users_seen": found.users_seen}],
    )
    rows = [
        {
            "run_id": run_id,
            "user_id": user_id,
            "actions": found.marks.get(user_id),
            "refreshed_at": now if user_id in written else None,
        }
        for user_id in found.user_ids
    ]
    _upsert(connection, refreshed_users, rows)


def refreshed_so_far(connection: sa.Connection, run_id: str) -> int:
    """Return how many users' lists were written anew since the night."""
    counted = sa.select(sa.func.count(refreshed_users.c.refreshed_at))
    return int(connection.scalar(counted.where(refreshed_users.c.run_id == run_id)) or 0)


def _upsert(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    """Add rows, or put them in the place of those with the same key."""
    if not rows:
        return
    entered = insert(table)
    fresh = {column.name: entered.excluded[column.name] for column in table.columns if not column.primary_key}
    connection.execute(
        entered.on_conflict_do_update(index_elements=list(table.primary_key.columns), set_=fresh), rows
    )
