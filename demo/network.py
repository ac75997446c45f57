"""Tables of a demo network, the three views over them that Overnight reads, and COPY into the tables.

A load is one transaction: if it is interrupted, the previous network stays.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pandas as pd
import psycopg2
import pyarrow as pa
import pyarrow.csv
import sqlalchemy as sa

from contract.errors import EXIT_USAGE, OvernightError
from contract.ids import WHOLE_NUMBERS, IdKind, IdKinds
from demo.network_app import tables
from demo.postgres import make_engine

FEED_ACTION = "feed_action"

USER_TABLE = """
CREATE TABLE "user" (
    id {id_type} PRIMARY KEY, gender integer, age integer, country text, city text,
    exp_group integer, os text, source text
)"""

FEED_ACTION_TABLE = """
CREATE TABLE feed_action (
    user_id {user_type} NOT NULL, post_id {post_type} NOT NULL, action text NOT NULL,
    time timestamptz NOT NULL
)"""

INDEXES = """
CREATE INDEX feed_action_user_time ON feed_action (user_id, time);
CREATE INDEX feed_action_time ON feed_action (time);
CREATE INDEX feed_action_post_time ON feed_action (post_id, time);
CREATE INDEX feed_action_post_like ON feed_action (post_id, user_id, action, time)
    WHERE action IN ('like', 'unlike')"""
"""The last one counts who likes each post, for the network's pages."""

USERS_VIEW = """
CREATE VIEW recs.users AS
SELECT id AS user_id, gender, age, country, city, exp_group, os, source
FROM "user" """

DROP = f"""
DROP SCHEMA IF EXISTS recs CASCADE;
DROP TABLE IF EXISTS "user", post, feed_action, simulation, {", ".join(tables.NAMES)} CASCADE"""

TABLE_COMMENT = "made by python -m demo, and dropped by it when another network is loaded"
READ_TABLE_COMMENT = "SELECT obj_description(to_regclass('public.feed_action'), 'pg_class')"
FIND_OBJECT_IN_THE_WAY = """
SELECT coalesce(to_regnamespace('recs')::text, to_regclass('public."user"')::text,
                to_regclass('public.post')::text, to_regclass('public.feed_action')::text)"""


class NetworkError(OvernightError):
    """Raised when a network cannot be loaded or read; says which file or value is wrong."""

    exit_code = EXIT_USAGE


@contextmanager
def transaction(database_url: str) -> Iterator[sa.Connection]:
    """Open one transaction: commit it at the end, roll it back on any error.

    Raises
    ------
    OvernightError
        If Postgres cannot be reached or rejects a statement; one line.
    """
    try:
        with make_engine(database_url).begin() as connection:
            yield connection
    except (sa.exc.DBAPIError, psycopg2.Error) as error:
        reason = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
        raise OvernightError(f"Postgres: {reason}") from error


def id_type(kind: IdKind) -> str:
    """Return the SQL type of ids of a kind."""
    return tables.ID_TYPES[kind]


def create_tables(
    connection: sa.Connection,
    post_table: str,
    user_table: str | None = None,
    *,
    kinds: IdKinds = WHOLE_NUMBERS,
) -> None:
    """Drop the demo's previous network and create empty tables, without indexes.

    Parameters
    ----------
    post_table, user_table
        DDL of the tables `post` and `"user"`, whose columns differ between networks; None for
        the columns of a simulated network's users.

    Raises
    ------
    NetworkError
        If the database has a table or schema of these names that the demo did not make.
    """
    if connection.exec_driver_sql(READ_TABLE_COMMENT).scalar() != TABLE_COMMENT:
        foreign = connection.exec_driver_sql(FIND_OBJECT_IN_THE_WAY).scalar()
        if foreign is not None:
            raise NetworkError(
                f"the database of DATABASE_URL has {foreign}, which the demo did not make and would drop; "
                "give an empty database, or unset DATABASE_URL to use the demo's own"
            )
    connection.exec_driver_sql(DROP)
    user_type, post_type = id_type(kinds.users), id_type(kinds.posts)
    user_table = USER_TABLE.format(id_type=user_type) if user_table is None else user_table
    feed_action_table = FEED_ACTION_TABLE.format(user_type=user_type, post_type=post_type)
    for table in (user_table, post_table, feed_action_table):
        _execute_verbatim(connection, table)
    connection.exec_driver_sql(f"COMMENT ON TABLE {FEED_ACTION} IS '{TABLE_COMMENT}'")


def create_views(
    connection: sa.Connection,
    post_columns: Mapping[str, str],
    users_view: str = USERS_VIEW,
    *,
    kinds: IdKinds = WHOLE_NUMBERS,
) -> None:
    """Create indexes, the tables of the network's app and the three views, and run ANALYZE.

    Parameters
    ----------
    post_columns
        Name of each column of the view of posts -> that of the table post.
    """
    connection.exec_driver_sql("SET LOCAL maintenance_work_mem = '128MB'")
    connection.exec_driver_sql(INDEXES)
    connection.exec_driver_sql(tables.create_tables_ddl(kinds))
    keys = (quote(_read_key(connection, table)) for table in ('"user"', "post"))
    for statement in tables.extend_tables_ddl(kinds, *keys):
        _execute_verbatim(connection, statement)
    connection.exec_driver_sql("CREATE SCHEMA recs")
    for view in (users_view, _posts_view(post_columns), tables.INTERACTIONS_VIEW):
        _execute_verbatim(connection, view)
    connection.exec_driver_sql('ANALYZE "user", post, feed_action')


def _read_key(connection: sa.Connection, table: str) -> str:
    """Return the name of a table's primary key, which is one column."""
    return str(connection.scalar(sa.text(tables.READ_KEY), {"table": table}))


def _posts_view(columns: Mapping[str, str]) -> str:
    """Return the view of posts, then columns that only the app has; counters count what is done there too."""
    added = {name: name for name in tables.POST_COLUMNS if name not in columns}
    expressions = {name: f"post.{quote(column)}" for name, column in (dict(columns) | added).items()}
    key = expressions["post_id"]
    for name, counted in tables.COUNTERS.items():
        if name in expressions:
            expressions[name] += f" + {counted.format(post=key)}"
    selected = ", ".join(f"{expression} AS {quote(name)}" for name, expression in expressions.items())
    return f"CREATE VIEW recs.posts AS SELECT {selected} FROM post"


def quote(name: str) -> str:
    """Quote a column name for SQL."""
    return '"' + name.replace('"', '""') + '"'


def copy_frame(connection: sa.Connection, table: str, rows: pd.DataFrame) -> None:
    """COPY a frame into the columns of the same names; missing values become NULL."""
    arrow = pa.Table.from_pandas(rows, preserve_index=False)
    copy_tables(connection, table, arrow.column_names, iter([arrow]))


def copy_tables(
    connection: sa.Connection, table: str, columns: list[str], chunks: Iterator[pa.Table], *, new: bool = True
) -> None:
    """COPY Arrow tables into the named columns, in order; missing values become NULL.

    One chunk is in memory at a time. `new` says that this transaction has created the table.
    """
    _copy(connection, _copy_command(table, columns, "csv", freeze=new), map(_encode_csv, chunks))


def copy_binary(
    connection: sa.Connection, table: str, columns: list[str], chunks: Iterator[bytes], *, new: bool = True
) -> None:
    """COPY rows in Postgres's binary format; one chunk is in memory at a time.

    https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format". `new`
    says that this transaction has created the table.
    """
    _copy(connection, _copy_command(table, columns, "binary", freeze=new), chunks)


def _copy_command(table: str, columns: list[str], format_name: str, *, freeze: bool) -> str:
    """Return the COPY command; FREEZE needs a new table, and later scans then need no VACUUM."""
    names = ", ".join(map(quote, columns))
    options = f"FORMAT {format_name}, FREEZE {'on' if freeze else 'off'}"
    return f"COPY {table} ({names}) FROM STDIN WITH ({options})"


def _encode_csv(rows: pa.Table) -> bytes:
    """Write rows as CSV: faster than DataFrame.to_csv, and an empty text differs from a missing one."""
    lines = io.BytesIO()
    pa.csv.write_csv(rows, lines, pa.csv.WriteOptions(include_header=False))
    return lines.getvalue()


def _copy(connection: sa.Connection, command: str, chunks: Iterator[bytes]) -> None:
    reader = _ChunkReader(chunks)
    driver: Any = connection.connection.cursor()
    try:
        with driver as cursor:
            cursor.copy_expert(command, reader, size=1 << 18)
    except psycopg2.Error:
        if reader.failure is not None:
            raise reader.failure from None
        raise


def _execute_verbatim(connection: sa.Connection, statement: str) -> None:
    """Execute a statement whose percent signs belong to column names and are not parameters."""
    driver: Any = connection.connection.cursor()
    with driver as cursor:
        cursor.execute(statement)


class _ChunkReader:
    """A readable file over an iterator of byte strings.

    `failure` is the exception that ended the iteration, for example
    KeyboardInterrupt: the driver replaces every exception of a read by its own.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.failure: BaseException | None = None
        self._chunks = chunks
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        try:
            if not self._rest:
                self._rest = memoryview(next(self._chunks, b""))
        except BaseException as error:
            self.failure = error
            raise
        taken, self._rest = self._rest[:size], self._rest[size:]
        return bytes(taken)
