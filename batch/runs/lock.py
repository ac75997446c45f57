"""One run at a time, whoever started it: an advisory lock in Postgres.

The lock belongs to a connection. If its holder dies, Postgres notices the lost
connection and the lock is free again; nothing has to be cleaned up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from contract.errors import LockedError

TRY = sa.text("SELECT pg_try_advisory_lock(hashtextextended(:name, 0))")
HOLDER = sa.text("""
    SELECT activity.application_name, activity.pid, activity.backend_start
    FROM pg_locks held JOIN pg_stat_activity activity USING (pid)
    WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 1
      AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (held.classid::bigint << 32) | held.objid::bigint = hashtextextended(:name, 0)
""")
KEEPALIVE = sa.text("""
    SELECT set_config('tcp_keepalives_idle', '30', false), set_config('tcp_keepalives_interval', '10', false)
""")


STILL_THERE = sa.text("SELECT 1")


class Lock:
    """The lock as held: it lasts as long as the connection that took it."""

    def __init__(self, engine: sa.Engine, key_prefix: str) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._name = {"name": f"overnight:{key_prefix}"}
        self._connection = self._taken()

    def check(self) -> None:
        """Make sure that the lock is held still; take it again if its connection was lost.

        What happened in between the ledger tells: a run that took the lock
        meanwhile has closed this one there.

        Raises
        ------
        LockedError
            Another run has taken it.
        """
        try:
            self._connection.execute(STILL_THERE)
        except DBAPIError:
            self.release()
            self._connection = self._taken()

    def release(self) -> None:
        """Close the connection, and with it the lock."""
        self._connection.invalidate()
        self._connection.close()

    def _taken(self) -> sa.Connection:
        connection = self._engine.connect()
        connection.execute(KEEPALIVE)
        if connection.scalar(TRY, self._name):
            return connection
        try:
            raise LockedError(_who_holds(connection, self._name))
        finally:
            connection.close()


@contextmanager
def held(engine: sa.Engine, key_prefix: str) -> Iterator[Lock]:
    """Hold the lock of everything that one database publishes under one key prefix.

    Raises
    ------
    LockedError
        Another run holds it; says who and since when.
    """
    lock = Lock(engine, key_prefix)
    try:
        yield lock
    finally:
        lock.release()


def _who_holds(connection: sa.Connection, name: dict[str, str]) -> str:
    holder = connection.execute(HOLDER, name).first()
    if holder is None:
        return "another run held the lock a moment ago; try again"
    who = f"{holder.application_name} (Postgres pid {holder.pid})"
    if holder.backend_start is not None:  # Postgres shows it to the same role only
        who += f", since {holder.backend_start.isoformat(timespec='seconds')}"
    return f"another run holds the lock: {who}; wait for it or stop it"
