"""Advisory locks in Postgres: one run at a time, and one refresh at a time, on any machine.

The lock belongs to a connection. If its holder dies, Postgres notices the lost
connection and frees the lock; nothing has to be cleaned up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from batch.postgres_session import transaction_pooling
from contract.errors import LockedError

IN_TRANSACTION = sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
LOCK_TIMEOUT = sa.text("SET LOCAL lock_timeout = '20s'")
TRY = sa.text("SELECT pg_try_advisory_lock(hashtextextended(:name, 0))")
log = logging.getLogger("batch")

HELD = """
    FROM pg_locks held JOIN pg_stat_activity activity USING (pid)
    WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 1
      AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (held.classid::bigint << 32) | held.objid::bigint = hashtextextended(:name, 0)
"""
HOLDER = sa.text(f"SELECT activity.application_name, activity.pid, activity.backend_start {HELD}")
IS_HELD = sa.text(f"SELECT EXISTS (SELECT {HELD} AND pid = pg_backend_pid())")
UNLOCK = sa.text("SELECT pg_advisory_unlock(hashtextextended(:name, 0))")

NIGHT, REFRESH = "night", "refresh"
"""Purposes of a lock: runs; writing into a live run, or removing keys of runs."""

COMMAND = {NIGHT: "run", REFRESH: "refresh"}
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Holder:
    """The session that holds a lock; `since` is its start, None if this role may not see it."""

    application: str
    pid: int
    since: datetime | None

    def describe(self) -> str:
        """Return who holds it, in a few words."""
        since = f", since {self.since.isoformat(timespec='seconds')}" if self.since else ""
        return f"{self.application} (Postgres pid {self.pid}){since}"


def find_holder(connection: sa.Connection, key_prefix: str, purpose: str) -> Holder | None:
    """Return who holds a lock, and None if nobody does."""
    found = connection.execute(HOLDER, _lock_name(key_prefix, purpose)).first()
    if found is None:
        return None
    return Holder(found.application_name, found.pid, found.backend_start)


def find_holders(connection: sa.Connection, key_prefix: str) -> dict[str, Holder]:
    """Return purpose -> holder of the locks that are held."""
    found = {purpose: find_holder(connection, key_prefix, purpose) for purpose in (NIGHT, REFRESH)}
    return {purpose: holder for purpose, holder in found.items() if holder is not None}


def _lock_name(key_prefix: str, purpose: str) -> dict[str, str]:
    """Return the parameter of the queries above."""
    name = f"overnight:{key_prefix}" if purpose == NIGHT else f"overnight:{key_prefix}:{purpose}"
    return {"name": name}


class Lock:
    """A lock that is held; it lasts as long as the connection that took it."""

    def __init__(self, engine: sa.Engine, key_prefix: str, purpose: str, timeout_seconds: float) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._key_prefix, self._purpose = key_prefix, purpose
        self._name = _lock_name(key_prefix, purpose)
        self._connection = self._acquire(timeout_seconds)

    def check(self) -> None:
        """Check that the lock is still held; take it again if its connection was lost.

        A run that held the lock in between has closed this one in the ledger.

        Raises
        ------
        LockedError
            Another run has taken it.
        TransactionPoolingError
            The connection is open and does not hold it: it has no session of its own.
        """
        try:
            held = self._connection.scalar(IS_HELD, self._name)
        except DBAPIError as error:
            reason = " ".join(str(error.orig).split())
            log.warning("the connection that holds the lock was lost, the lock is taken again: %s", reason)
            self.release()
            self._connection = self._acquire(timeout_seconds=0)
        else:
            if not held:
                raise transaction_pooling(self._engine.url)

    def release(self) -> None:
        """Release the lock and close the connection; if it is lost, Postgres frees the lock itself."""
        with suppress(SQLAlchemyError):
            self._connection.execute(UNLOCK, self._name)
        self._connection.invalidate()
        self._connection.close()

    def _acquire(self, timeout_seconds: float) -> sa.Connection:
        connection = self._engine.connect()
        deadline = time.monotonic() + timeout_seconds
        while not connection.scalar(TRY, self._name):
            if time.monotonic() >= deadline:
                try:
                    raise LockedError(self._describe_holder(connection))
                finally:
                    connection.close()
            time.sleep(POLL_SECONDS)
        return connection

    def _describe_holder(self, connection: sa.Connection) -> str:
        command = COMMAND[self._purpose]
        holder = find_holder(connection, self._key_prefix, self._purpose)
        if holder is None:
            return f"another {command} held the lock a moment ago; try again"
        return f"another {command} holds the lock: {holder.describe()}; wait for it or stop it"


@contextmanager
def hold(
    engine: sa.Engine, key_prefix: str, purpose: str = NIGHT, timeout_seconds: float = 0
) -> Iterator[Lock]:
    """Hold the lock for everything that one database publishes under one key prefix.

    Parameters
    ----------
    purpose
        NIGHT for a run. REFRESH for writing into a live run and for removing keys of runs, so that
        the two never overlap.
    timeout_seconds
        How long to wait for another holder.

    Raises
    ------
    LockedError
        Another process holds it; the message says which, and since when.
    """
    lock = Lock(engine, key_prefix, purpose, timeout_seconds)
    try:
        yield lock
    finally:
        lock.release()


@contextmanager
def locked_transaction(engine: sa.Engine, name: str) -> Iterator[sa.Connection]:
    """Open a transaction that holds the lock of a name until it ends; it waits 20 s for another holder."""
    with engine.begin() as connection:
        connection.execute(LOCK_TIMEOUT)
        connection.execute(IN_TRANSACTION, {"name": f"overnight {name}"})
        yield connection
