"""A network's own tables, and the three views that Overnight reads over them.

Loading is one transaction: a load that is interrupted leaves what was there.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg2
import pyarrow as pa
import pyarrow.csv
import sqlalchemy as sa

from contract import columns
from contract.codec import decode_object, encode_object
from contract.errors import EXIT_USAGE, OvernightError
from demo.postgres import engine_of

FEED_ACTION = "feed_action"

USER_TABLE = """
CREATE TABLE "user" (
    id bigint PRIMARY KEY, gender integer, age integer, country text, city text,
    exp_group integer, os text, source text
)"""

FEED_ACTION_TABLE = """
CREATE TABLE feed_action (
    user_id bigint NOT NULL, post_id bigint NOT NULL, action text NOT NULL, time timestamptz NOT NULL
)"""

INDEXES = """
CREATE INDEX feed_action_user_time ON feed_action (user_id, time);
CREATE INDEX feed_action_time ON feed_action (time)"""

USERS_VIEW = """
CREATE VIEW recs.users AS
SELECT id AS user_id, gender, age, country, city, exp_group, os, source
FROM "user" """

INTERACTIONS_VIEW = """
CREATE VIEW recs.interactions AS
SELECT user_id, post_id, action, time AS happened_at
FROM feed_action"""

DROP = """
DROP SCHEMA IF EXISTS recs CASCADE;
DROP TABLE IF EXISTS "user", post, feed_action, simulation CASCADE"""


MARK = "made by python -m demo, and dropped by it when another network is loaded"
MARKED = "SELECT obj_description(to_regclass('public.feed_action'), 'pg_class')"
FOREIGN = """
SELECT coalesce(to_regnamespace('recs')::text, to_regclass('public."user"')::text,
                to_regclass('public.post')::text, to_regclass('public.feed_action')::text)"""


class NetworkError(OvernightError):
    """Raised when a demo network cannot be loaded as asked, or cannot be read."""

    exit_code = EXIT_USAGE


@contextmanager
def transaction(database_url: str) -> Iterator[sa.Connection]:
    """Open one transaction: committed at the end, rolled back on any error.

    Raises
    ------
    OvernightError
        One line, when Postgres cannot be reached or turns something down.
    """
    try:
        with engine_of(database_url).begin() as connection:
            yield connection
    except (sa.exc.DBAPIError, psycopg2.Error) as error:
        reason = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
        raise OvernightError(f"Postgres: {reason}") from error


def create_tables(connection: sa.Connection, post_table: str, user_table: str = USER_TABLE) -> None:
    """Drop the demo's network that is there and create empty tables, without indexes.

    Parameters
    ----------
    post_table, user_table
        DDL of the tables `post` and `"user"`, whose columns differ between networks.

    Raises
    ------
    NetworkError
        If the database holds tables that the demo did not make: they are somebody's.
    """
    if connection.exec_driver_sql(MARKED).scalar() != MARK:
        foreign = connection.exec_driver_sql(FOREIGN).scalar()
        if foreign is not None:
            raise NetworkError(
                f"the database of DATABASE_URL has {foreign}, which the demo did not make and would drop; "
                "give an empty database, or unset DATABASE_URL to use the demo's own"
            )
    connection.exec_driver_sql(DROP)
    for table in (user_table, post_table, FEED_ACTION_TABLE):
        _execute_as_is(connection, table)
    connection.exec_driver_sql(f"COMMENT ON TABLE {FEED_ACTION} IS '{MARK}'")


def create_views(connection: sa.Connection, posts_view: str, users_view: str = USERS_VIEW) -> None:
    """Index the loaded tables, lay the three views over them and gather statistics."""
    connection.exec_driver_sql("SET LOCAL maintenance_work_mem = '128MB'")
    connection.exec_driver_sql(INDEXES)
    connection.exec_driver_sql("CREATE SCHEMA recs")
    for view in (users_view, posts_view, INTERACTIONS_VIEW):
        connection.exec_driver_sql(view)
    connection.exec_driver_sql('ANALYZE "user", post, feed_action')


def quote(name: str) -> str:
    """Quote the name of a column for SQL, whatever characters it has."""
    return '"' + name.replace('"', '""') + '"'


def copy_frame(connection: sa.Connection, table: str, rows: pd.DataFrame) -> None:
    """COPY a frame whose columns are named as in the table; missing values become NULL."""
    arrow = pa.Table.from_pandas(rows, preserve_index=False)
    copy_tables(connection, table, arrow.column_names, iter([arrow]))


def copy_tables(connection: sa.Connection, table: str, columns: list[str], parts: Iterator[pa.Table]) -> None:
    """COPY Arrow tables into the columns named, in order; missing values become NULL.

    One part is in memory at a time. The table was created by this transaction.
    """
    _copy_parts(connection, table, columns, "csv", map(_csv_lines, parts))


def _csv_lines(rows: pa.Table) -> bytes:
    """Write rows as CSV: much faster than DataFrame.to_csv, and it tells an empty text from a missing one."""
    lines = io.BytesIO()
    pa.csv.write_csv(rows, lines, pa.csv.WriteOptions(include_header=False))
    return lines.getvalue()


def copy_binary(
    connection: sa.Connection, table: str, columns: list[str], parts: Iterator[bytes], *, new: bool = True
) -> None:
    """COPY rows in Postgres's binary format, part after part; one part is in memory at a time.

    https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format". `new`
    is for a table that this transaction created.
    """
    _copy_parts(connection, table, columns, "binary", parts, new=new)


def _copy_parts(
    connection: sa.Connection,
    table: str,
    columns: list[str],
    form: str,
    parts: Iterator[bytes],
    *,
    new: bool = True,
) -> None:
    source = _Parts(parts)
    try:
        _copy(connection, table, columns, form, source, new=new)
    except psycopg2.Error:
        if source.failure is not None:
            raise source.failure from None
        raise


def _copy(
    connection: sa.Connection, table: str, columns: list[str], form: str, stream: Any, *, new: bool
) -> None:
    names = ", ".join(map(quote, columns))
    # FREEZE is allowed if the table was created in this transaction; later scans need no VACUUM first.
    command = f"COPY {table} ({names}) FROM STDIN WITH (FORMAT {form}, FREEZE {'on' if new else 'off'})"
    driver: Any = connection.connection.cursor()
    with driver as cursor:
        cursor.copy_expert(command, stream, size=1 << 18)


def _execute_as_is(connection: sa.Connection, statement: str) -> None:
    """Execute a statement in which a percent sign is no parameter, but part of a column's name."""
    driver: Any = connection.connection.cursor()
    with driver as cursor:
        cursor.execute(statement)


class _Parts:
    """A file to read from, made of byte strings that come one by one.

    `failure` is what interrupted the reading, Ctrl-C for one: the driver turns
    every exception of a read into one of its own.
    """

    def __init__(self, parts: Iterator[bytes]) -> None:
        self.failure: BaseException | None = None
        self._parts = parts
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        try:
            if not self._rest:
                self._rest = memoryview(next(self._parts, b""))
        except BaseException as error:
            self.failure = error
            raise
        taken, self._rest = self._rest[:size], self._rest[size:]
        return bytes(taken)


SIMULATED = "simulated"
READ_NOTE = sa.text("SELECT obj_description(to_regnamespace(:schema), 'pg_namespace')")


@dataclass(frozen=True)
class Loaded:
    """A network that was loaded to the end.

    Attributes
    ----------
    source
        `simulated`, or the folder that it came from.
    size
        In words, for people.
    at
        When the load ended, by this machine's clock, to the second.
    """

    source: str
    size: str
    at: datetime


def loaded(engine: sa.Engine) -> Loaded | None:
    """Return what network is there, if one was loaded to the end."""
    with engine.connect() as connection:
        note = connection.scalar(READ_NOTE, {"schema": columns.SCHEMA})
    return None if note is None else decode(note)


def note_loaded(engine: sa.Engine, source: str) -> Loaded:
    """Note that the network is there, and count what it holds."""
    with engine.begin() as connection:
        users, posts, rows = (
            connection.scalar(sa.text(f"SELECT count(*) FROM {columns.SCHEMA}.{relation}"))
            for relation in (columns.USERS, columns.POSTS, columns.INTERACTIONS)
        )
        size = f"{users:,} users, {posts:,} posts, {rows:,} interactions"
        network = Loaded(source, size, at=datetime.now(UTC).replace(microsecond=0))
        connection.exec_driver_sql(f"COMMENT ON SCHEMA {columns.SCHEMA} IS %s", (encode(network),))
    return network


def encode(network: Loaded) -> str:
    """Write it down."""
    return encode_object({"source": network.source, "size": network.size, "at": network.at.isoformat()})


def decode(note: str) -> Loaded | None:
    """Read what `encode` wrote; None if it is something else."""
    try:
        fields = decode_object(note)
        return Loaded(fields["source"], fields["size"], datetime.fromisoformat(fields["at"]))
    except (KeyError, ValueError):
        return None


def source_of(network: Path | None) -> str:
    """Name the network of a folder, or the simulated one."""
    return SIMULATED if network is None else str(network.resolve())
