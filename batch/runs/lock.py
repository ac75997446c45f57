"""One run at a time, and one refresh, whoever started it: an advisory lock in Postgres for each.

The lock belongs to a connection. If its holder dies, Postgres notices the lost
connection and the lock is free again; nothing has to be cleaned up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

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
UNLOCK = sa.text("SELECT pg_advisory_unlock(hashtextextended(:name, 0))")
STILL_THERE = sa.text("SELECT 1")

NIGHT, REFRESH = "night", "refresh"
"""What is done one at a time: runs, and writing into a live run or removing runs' keys."""

CALLED = {NIGHT: "run", REFRESH: "refresh"}
LOOK_AGAIN_SECONDS = 0.1


class Lock:
    """The lock as held: it lasts as long as the connection that took it."""

    def __init__(self, engine: sa.Engine, key_prefix: str, purpose: str, patience_seconds: float) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._called = CALLED[purpose]
        name = f"overnight:{key_prefix}" if purpose == NIGHT else f"overnight:{key_prefix}:{purpose}"
        self._name = {"name": name}
        self._connection = self._taken(patience_seconds)

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
            self._connection = self._taken(patience_seconds=0)

    def release(self) -> None:
        """Let go of the lock and close the connection; if that is lost, Postgres frees the lock itself."""
        with suppress(SQLAlchemyError):
            self._connection.execute(UNLOCK, self._name)
        self._connection.invalidate()
        self._connection.close()

    def _taken(self, patience_seconds: float) -> sa.Connection:
        connection = self._engine.connect()
        connection.execute(KEEPALIVE)
        deadline = time.monotonic() + patience_seconds
        while not connection.scalar(TRY, self._name):
            if time.monotonic() >= deadline:
                try:
                    raise LockedError(self._who_holds(connection))
                finally:
                    connection.close()
            time.sleep(LOOK_AGAIN_SECONDS)
        return connection

    def _who_holds(self, connection: sa.Connection) -> str:
        holder = connection.execute(HOLDER, self._name).first()
        if holder is None:
            return f"another {self._called} held the lock a moment ago; try again"
        who = f"{holder.application_name} (Postgres pid {holder.pid})"
        if holder.backend_start is not None:  # Postgres shows it to the same role only
            who += f", since {holder.backend_start.isoformat(timespec='seconds')}"
        return f"another {self._called} holds the lock: {who}; wait for it or stop it"


@contextmanager
def held(
    engine: sa.Engine, key_prefix: str, purpose: str = NIGHT, patience_seconds: float = 0
) -> Iterator[Lock]:
    """Hold a lock of everything that one database publishes under one key prefix.

    Parameters
    ----------
    purpose
        NIGHT for a run. REFRESH for what writes into a live run, and for what
        removes keys of runs, so that neither meets the other.
    patience_seconds
        How long to wait for another holder.

    Raises
    ------
    LockedError
        Another holds it; says who and since when.
    """
    lock = Lock(engine, key_prefix, purpose, patience_seconds)
    try:
        yield lock
    finally:
        lock.release()
