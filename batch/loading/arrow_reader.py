"""Reads a Postgres query as Arrow batches: ADBC's driver over binary COPY, in a thread."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty, Full, Queue
from typing import Any

import adbc_driver_manager
import numpy as np
import pyarrow as pa
import sqlalchemy as sa
from adbc_driver_postgresql import dbapi
from psycopg2 import errorcodes

from batch.ids import Ids, as_ids
from batch.loading.schema import cast_id, column_types, kind_of_ids
from batch.postgres import connection_string, session_queries, source_error
from contract.columns import SCHEMA
from contract.settings import Settings

BATCH_BYTES = 8 * 2**20

BATCHES_AHEAD = 2
"""Number of batches read ahead."""

POLL_SECONDS = 0.2
STOP_SECONDS = 10

SERVER_ERROR = re.compile(r"\[PGRES_FATAL_ERROR\]: \S+:\s+(.*)")
"""The message of Postgres in an error of pyarrow; it stands after its severity."""

PRIMARY_MESSAGE = "PG_DIAG_MESSAGE_PRIMARY"


@contextmanager
def read_batches(
    connection: sa.Connection, settings: Settings, query: str
) -> Iterator[Iterator[pa.RecordBatch]]:
    """Yield the batches of a query, which runs in the snapshot of the transaction of `connection`.

    The driver runs in its own thread. So signals reach the caller at any time
    (the driver's calls block them), and the next batch is read while the caller
    processes one. Leaving the block cancels the query.

    Parameters
    ----------
    connection
        In a REPEATABLE READ transaction, whose snapshot is exported.

    Raises
    ------
    SourceError
        Postgres rejects the query, or the connection is lost.
    """
    snapshot = connection.scalar(sa.text("SELECT pg_export_snapshot()"))
    reader = _Reader(connection_string(connection), session_queries(connection), str(snapshot), query)
    reader.start()
    try:
        yield reader.batches(settings)
    finally:
        reader.stop()


def read_ids(connection: sa.Connection, settings: Settings, view: str, column: str) -> Ids:
    """Return all distinct ids of a view, ascending."""
    kind = kind_of_ids(column_types(connection, view)[column])
    id_ = cast_id(column, kind)
    query = f"SELECT DISTINCT {id_} AS id FROM {SCHEMA}.{view} WHERE {column} IS NOT NULL"
    with read_batches(connection, settings, query) as batches:
        parts = [batch.column("id").to_numpy(zero_copy_only=False) for batch in batches]
    return np.sort(np.concatenate([*parts, as_ids([], kind)]))


class _Reader(threading.Thread):
    """Puts batches into a queue, then None, or the exception that ended the query."""

    def __init__(self, connection_string: str, session: list[str], snapshot: str, query: str) -> None:
        super().__init__(name="read-batches", daemon=True)
        self._connection_string = connection_string
        self._statements = [
            *session,
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            f"SET TRANSACTION SNAPSHOT '{snapshot}'",
        ]
        self._query = query
        self._queue: Queue[pa.RecordBatch | BaseException | None] = Queue(BATCHES_AHEAD)
        self._stopped = threading.Event()
        self._cursor: dbapi.Cursor | None = None  # set while the query may be cancelled
        self._lock = threading.Lock()

    def run(self) -> None:
        try:
            self._read()
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            self._put(error)

    def _read(self) -> None:
        with (
            dbapi.connect(self._connection_string, autocommit=True) as connection,
            connection.cursor() as cursor,
        ):
            for statement in self._statements:
                cursor.execute(statement)
                cursor.fetchall()
            cursor.adbc_statement.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)})
            self._cursor = cursor
            try:
                cursor.execute(self._query)
                with cursor.fetch_record_batch() as batches:
                    for batch in batches:
                        if not self._put(batch):
                            return
            finally:
                with self._lock:  # the cursor is closed next; it must not be cancelled meanwhile
                    self._cursor = None

    def _put(self, item: pa.RecordBatch | BaseException | None) -> bool:
        """Put an item into the queue, waiting for space; return False once the reader is stopped."""
        while not self._stopped.is_set():
            with suppress(Full):
                self._queue.put(item, timeout=POLL_SECONDS)
                return True
        return False

    def batches(self, settings: Settings) -> Iterator[pa.RecordBatch]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, adbc_driver_manager.Error):
                raise source_error(settings, item.sqlstate, _primary_message(item)) from None
            if isinstance(item, (OSError, pa.ArrowException)):  # an error during the read
                found = SERVER_ERROR.search(str(item))
                code = errorcodes.INTERNAL_ERROR if found else None
                raise source_error(settings, code, found[1] if found else str(item)) from None
            if isinstance(item, BaseException):
                raise item
            yield item

    def stop(self) -> None:
        self._stopped.set()
        with self._lock, suppress(adbc_driver_manager.Error):
            if self._cursor is not None:
                self._cursor.adbc_cancel()
        with suppress(Empty):
            while True:
                self._queue.get_nowait()
        self.join(STOP_SECONDS)


def _primary_message(error: Any) -> str:
    """Return the message of Postgres, without the query and the driver's text."""
    for name, value in error.details or ():
        if (name.decode() if isinstance(name, bytes) else name) == PRIMARY_MESSAGE:
            return str(value.decode() if isinstance(value, bytes) else value)
    return str(error)
