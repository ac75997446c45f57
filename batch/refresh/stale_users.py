"""Stale users: new users, and users who acted since their list was made.

Timestamps cannot tell which actions a list already includes: actions are entered late, with equal times,
or with times in the future. So we store an md5 fingerprint of each user's actions since shortly before
the run's cutoff; users whose fingerprint changed are stale. The night stores the fingerprints of its
snapshot, and a refresh those of the users whose lists it writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from batch.ids import Ids
from batch.runs.user_ids import find_user_ids, take_user_ids
from contract.columns import SCHEMA
from contract.ids import Id
from contract.settings import Settings

ALWAYS_FORGOTTEN = 10
"""Users that a refresh forgets even if they are a large share of a small network."""

LATE = timedelta(hours=1)
"""An action that was entered up to this long after it happened is found, although the night missed it.

An action after the night's cutoff is found however late it is entered.
"""

tables = sa.MetaData(schema=SCHEMA)
refreshed_users = sa.Table(
    "refreshed_users",
    tables,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.BigInteger, primary_key=True),  # or text, see runs.user_ids
    sa.Column("actions", sa.Text),
    sa.Column("refreshed_at", sa.DateTime(timezone=True)),
)


@dataclass(frozen=True)
class StaleUsers:
    """Users to score again.

    Attributes
    ----------
    fingerprints
        User -> fingerprint of their actions now, None without actions; only users whose stored
        fingerprint differs.
    users
        Those of them, and the new users, that should have a list, ascending.
    new
        Number of new users.
    unknown
        Those of `users` that the night did not know, ascending.
    """

    fingerprints: dict[Id, str | None]
    users: list[Id]
    new: int
    unknown: list[Id]


NOBODY = StaleUsers({}, [], 0, [])


def create(engine: sa.Engine) -> None:
    """Create the table if it is missing."""
    tables.create_all(engine)


def find(
    connection: sa.Connection,
    run_id: str,
    fingerprints: dict[Id, str],
    *,
    user_ids: Ids,
    known: Ids,
    scored: int,
) -> StaleUsers:
    """Find the stale users of a run.

    Parameters
    ----------
    fingerprints
        User -> fingerprint of the actions from `LATE` before the run's cutoff on, see `fingerprints` of
        batch/loading/combined_store.py.
    user_ids
        Users of the network.
    known, scored
        Users that the night knew, and the number of them, from the first, that it made lists for. If
        these are not all (--limit-users), no other user should have a list.
    """
    stored, refreshed = _stored(connection, run_id, known)
    changed = {
        user: fingerprints.get(user)
        for user in fingerprints.keys() | stored.keys()
        if fingerprints.get(user) != stored.get(user)
    }
    present = user_ids.tolist()
    acted = changed.keys() & set(present)
    if scored < known.size:
        return StaleUsers(changed, sorted(acted.intersection(known[:scored].tolist())), 0, [])
    unknown = set(present).difference(known.tolist())
    new = unknown - refreshed
    return StaleUsers(changed, sorted(acted | new), len(new), sorted(unknown & (acted | new)))


def _stored(connection: sa.Connection, run_id: str, known: Ids) -> tuple[dict[Id, str | None], set[Id]]:
    """Return the stored fingerprints of a run, and the users whose lists were written since the night."""
    columns = refreshed_users.c
    rows = connection.execute(
        sa.select(columns.user_id, columns.actions, columns.refreshed_at).where(columns.run_id == run_id)
    ).all()
    user_ids = find_user_ids(connection, refreshed_users).decode([row.user_id for row in rows], known)
    pairs = list(zip(user_ids, rows, strict=True))
    return {user: row.actions for user, row in pairs}, {user for user, row in pairs if row.refreshed_at}


def record(
    connection: sa.Connection,
    run_id: str,
    stale: StaleUsers,
    *,
    written: set[Id],
    now: datetime,
    other_runs: sa.Select[Any],
) -> None:
    """Store the fingerprints of users whose lists are written.

    Parameters
    ----------
    written
        Users whose lists were written.
    other_runs
        Runs whose fingerprints are deleted; if one is live again, its refreshes start from the night's state.
    """
    connection.execute(sa.delete(refreshed_users).where(refreshed_users.c.run_id.in_(other_runs)))
    _store(
        connection,
        [
            {
                "run_id": run_id,
                "user_id": user_id,
                "actions": stale.fingerprints.get(user_id),
                "refreshed_at": now if user_id in written else None,
            }
            for user_id in sorted({*stale.fingerprints, *stale.users})
        ],
    )


def record_night(connection: sa.Connection, run_id: str, fingerprints: dict[Id, str]) -> None:
    """Store the fingerprints of the night's snapshot, so that only users who act later are stale."""
    _store(
        connection,
        [
            {"run_id": run_id, "user_id": user_id, "actions": fingerprint, "refreshed_at": None}
            for user_id, fingerprint in sorted(fingerprints.items())
        ],
    )


def _store(connection: sa.Connection, rows: list[dict[str, Any]]) -> None:
    if rows:
        take_user_ids(connection, refreshed_users, (row["user_id"] for row in rows))
        insertion = insert(refreshed_users)
        new_values = {name: insertion.excluded[name] for name in ("actions", "refreshed_at")}
        keys = list(refreshed_users.primary_key.columns)
        connection.execute(insertion.on_conflict_do_update(index_elements=keys, set_=new_values), rows)


def max_forgotten(settings: Settings, known: int) -> float:
    """Return how many of a run's `known` users a refresh forgets by itself: more may mean a wrong view."""
    return max(ALWAYS_FORGOTTEN, settings.night.forget_max_share * known)


def read_recorded(connection: sa.Connection, run_id: str, known: Ids) -> Ids:
    """Return the ids of the users that the night and the refreshes of a run have recorded, ascending.

    Parameters
    ----------
    known
        Ids of the run's users, or of the network's: those recorded are of the same kind.
    """
    found = sa.select(refreshed_users.c.user_id).where(refreshed_users.c.run_id == run_id)
    stored = list(connection.scalars(found))
    return np.sort(np.array(find_user_ids(connection, refreshed_users).decode(stored, known), known.dtype))


def forget(connection: sa.Connection, user_ids: Sequence[Id]) -> None:
    """Delete what is stored of users, for any run."""
    theirs = find_user_ids(connection, refreshed_users).is_one_of(user_ids)
    connection.execute(sa.delete(refreshed_users).where(theirs))


def count_refreshed(connection: sa.Connection, run_id: str) -> int:
    """Return the number of users whose lists were refreshed since the night."""
    counted = sa.select(sa.func.count(refreshed_users.c.refreshed_at))
    return int(connection.scalar(counted.where(refreshed_users.c.run_id == run_id)) or 0)
