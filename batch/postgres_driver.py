"""The driver's connection, which keeps the reason for which the server closed it.

The server says why it ends a connection (a timeout, a restart), and the reason arrives with the next query.
psycopg2 replaces it: "server closed the connection unexpectedly", then "connection already closed".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg2
from psycopg2 import extensions

LOST = "closed the connection"


class Connection(extensions.connection):
    """Raises errors with the server's reason, from the first one after it was closed on."""

    reason: str | None = None

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        """Return a cursor that does the same."""
        return super().cursor(*arguments, **{"cursor_factory": Cursor} | options)

    def commit(self) -> None:
        """Commit."""
        with self.keep_reason():
            super().commit()

    def rollback(self) -> None:
        """Roll back."""
        with self.keep_reason():
            super().rollback()

    @contextmanager
    def keep_reason(self) -> Iterator[None]:
        """Replace the driver's error on a closed connection.

        Raises
        ------
        psycopg2.OperationalError
            With the reason that the server gave.
        """
        try:
            yield
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            if error.pgcode is None and self.closed:
                self.reason = self.reason or self._read_reason()
                if self.reason:
                    raise psycopg2.OperationalError(self.reason) from error
            raise

    def _read_reason(self) -> str | None:
        """Return the server's last message if it is about the end of the connection; without its severity."""
        first, *rest = (self.info.error_message or "").splitlines() or [""]
        if any(LOST in line for line in rest):
            return first.partition(":  ")[2] or first
        return None


class Cursor(extensions.cursor):
    """Raises the errors of its connection."""

    def execute(self, *arguments: Any, **options: Any) -> None:
        """Execute a query."""
        with self._keep_reason():
            super().execute(*arguments, **options)

    def executemany(self, *arguments: Any, **options: Any) -> None:
        """Execute a query for each of several rows."""
        with self._keep_reason():
            super().executemany(*arguments, **options)

    def copy_expert(self, *arguments: Any, **options: Any) -> None:
        """Execute a COPY."""
        with self._keep_reason():
            super().copy_expert(*arguments, **options)

    def _keep_reason(self) -> AbstractContextManager[None]:
        connection: Any = self.connection
        reason: AbstractContextManager[None] = connection.keep_reason()
        return reason
