"""Copies users, posts and interactions from Postgres, in one read-only snapshot.

Interactions are read by ADBC's Postgres driver (Arrow batches over binary COPY)
and written to a DuckDB file, see interaction_store.py. Only this module maps ids
to rows, and leaves out and counts the interactions that cannot be used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import sqlalchemy as sa

from batch.files import folder_error, move_into_place, store_folder, work_folder
from batch.ids import Ids
from batch.loading.arrow_reader import read_batches
from batch.loading.future_rows import LAST_DAY
from batch.loading.interaction_store import (
    COUNTED,
    FILE,
    TABLES,
    VERSION,
    InteractionStore,
    StoreOptions,
    readable_errors,
    take_back_likes,
    to_time,
)
from batch.loading.interactions_query import interactions_since
from batch.loading.network import Network, load_network
from batch.postgres import snapshot
from batch.progress import track
from contract.columns import SCHEMA, UNLIKE_ACTION
from contract.settings import Settings

CHUNK_ROWS = 2_000_000
"""Rows per insert, about 150 MB in memory."""

MAP_CHUNK = """
    CREATE OR REPLACE TEMP TABLE chunk AS
    SELECT u.user_row, p.post_row, TRY_CAST(c.action AS action) AS action,
           make_timestamp(epoch_us(c.happened_at)) AS happened_at
    FROM pulled c LEFT JOIN users u USING (user_id) LEFT JOIN posts p USING (post_id)
"""
USABLE = "user_row IS NOT NULL AND post_row IS NOT NULL AND action IS NOT NULL AND happened_at IS NOT NULL"
INSERT_CHUNK = f"""
    INSERT INTO interactions SELECT * FROM chunk WHERE {USABLE} AND action <> '{UNLIKE_ACTION}'
    ORDER BY user_row, post_row, happened_at
"""
INSERT_UNLIKES = f"""
    INSERT INTO unlikes SELECT user_row, post_row, happened_at FROM chunk
    WHERE {USABLE} AND action = '{UNLIKE_ACTION}'
"""
COUNT_CHUNK = """
    SELECT count(*) FILTER (happened_at <= $until AND user_row IS NULL) AS of_unknown_users,
           count(*) FILTER (happened_at <= $until AND user_row IS NOT NULL AND post_row IS NULL)
               AS of_unknown_posts,
           count(*) FILTER (happened_at <= $until AND user_row IS NOT NULL AND post_row IS NOT NULL
                            AND action IS NULL) AS with_unknown_actions,
           count(*) FILTER (happened_at > $until) AS in_the_future,
           count(*) FILTER (happened_at IS NULL) AS without_a_time,
           count(*) FILTER (happened_at <= $until AND happened_at > $yesterday) AS of_last_day,
           epoch_us(max(happened_at) FILTER (happened_at <= $until)) AS latest
    FROM chunk
"""
REASONS = ("of_unknown_users", "of_unknown_posts", "with_unknown_actions", "in_the_future", "without_a_time")
IDENTITY = sa.text("""
    SELECT concat_ws('/', datname, d.oid, n.oid) FROM pg_database d, pg_namespace n
    WHERE datname = current_database() AND nspname = :schema
""")


@dataclass(frozen=True)
class PullResult:
    """What one pull read, in one snapshot.

    Attributes
    ----------
    latest
        Time (UTC) of the last interaction up to `until`, including those of
        unknown users and posts; None if there is none.
    left_out
        Reason -> number of interactions that are not in the store, or later than `until`.
    last_day
        Number of interactions in the 24 hours up to `until`.
    """

    network: Network
    store: InteractionStore
    latest: datetime | None
    left_out: dict[str, int]
    last_day: int


@dataclass(frozen=True)
class CopyCounts:
    """What was copied into a store, see `PullResult`."""

    latest: datetime | None
    left_out: dict[str, int]
    last_day: int


@contextmanager
def pull(
    engine: sa.Engine, settings: Settings, until: datetime, folder: Path | None = None
) -> Iterator[PullResult]:
    """Copy the source into a store and yield it; the file is renamed once it is complete.

    Parameters
    ----------
    until
        Posts created later are not read; interactions of all times are.
    folder
        Folder of the run, for store.duckdb; None removes the store at the end.

    Raises
    ------
    SourceError
        Postgres or one of the three views cannot be read, or lacks what is needed.
    InteractionStoreError
        The disk is full, or the folder cannot be written.
    """
    with work_folder(folder or store_folder(settings)) as work:
        path, options = work / FILE, StoreOptions.of(settings, work)
        with readable_errors(path), duckdb.connect(str(path), config=options.as_config()) as database:
            with snapshot(engine) as connection:
                network = load_network(connection, until, settings.night.ignore_columns)
                make_tables(database, network.user_ids, network.post_ids)
                query = interactions_since(connection, None)
                copied = copy_interactions(connection, settings, database, until, query)
                identity = database_identity(connection)
            _record(database, identity, (folder or work).name)
            database.execute("CHECKPOINT")  # close() also does it, but ignores a full disk
        if folder is not None:
            path = _rename_synced(path, folder / FILE)
        store = InteractionStore(path, options)
        try:
            yield PullResult(network, store, **vars(copied))
        finally:
            store.close()


def _rename_synced(unfinished: Path, path: Path) -> Path:
    try:
        return move_into_place(unfinished, path)
    except OSError as error:
        raise folder_error(path, error) from None


def make_tables(database: duckdb.DuckDBPyConnection, user_ids: Ids, post_ids: Ids) -> None:
    """Make the tables of a store, and insert the ids of users and posts, which ascend, with their rows."""
    users, posts = ("BIGINT" if ids.dtype == np.int64 else "VARCHAR" for ids in (user_ids, post_ids))
    database.execute(TABLES.format(users=users, posts=posts))
    for table, ids in (("users", user_ids), ("posts", post_ids)):
        database.register("ids", pa.table({"id_row": np.arange(ids.size, dtype=np.int32), "id": ids}))
        database.execute(f"INSERT INTO {table} SELECT id_row, id FROM ids")
        database.unregister("ids")


def copy_interactions(
    connection: sa.Connection,
    settings: Settings,
    database: duckdb.DuckDBPyConnection,
    until: datetime,
    query: str,
) -> CopyCounts:
    """Copy interactions from Postgres into a store's tables, and take back the likes that are undone.

    Parameters
    ----------
    until
        Later interactions are copied and counted as `in_the_future`.
    query
        From interactions_query.py.
    """
    latest, last_day = None, 0
    left_out: dict[str, int] = {}
    with read_batches(connection, settings, query) as batches:
        chunks = ((sum(batch.num_rows for batch in chunk), chunk) for chunk in _chunks(batches))
        for chunk in track(chunks, _expected_rows(connection, query), "read interactions", "interactions"):
            *counts, of_last_day, last = _insert(database, chunk, until)
            last_day += of_last_day
            latest = max((time for time in (latest, last) if time is not None), default=None)
            left_out = {
                name: left_out.get(name, 0) + count for name, count in zip(REASONS, counts, strict=True)
            }
    take_back_likes(database)
    found = None if latest is None else to_time(latest)
    return CopyCounts(found, left_out or dict.fromkeys(REASONS, 0), last_day)


def _chunks(batches: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """Group batches into chunks of about CHUNK_ROWS."""
    chunk: list[pa.RecordBatch] = []
    for batch in batches:
        chunk.append(batch)
        if sum(each.num_rows for each in chunk) >= CHUNK_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _insert(
    database: duckdb.DuckDBPyConnection, chunk: list[pa.RecordBatch], until: datetime
) -> tuple[Any, ...]:
    """Insert the usable rows; return the counts of the others, and the latest time up to `until`."""
    database.register("pulled", pa.Table.from_batches(chunk))
    database.execute(MAP_CHUNK)
    database.unregister("pulled")
    database.execute(INSERT_CHUNK)
    database.execute(INSERT_UNLIKES)
    naive = until.astimezone(UTC).replace(tzinfo=None)
    parameters = {"until": naive, "yesterday": naive - LAST_DAY}
    (counts,) = database.execute(COUNT_CHUNK, parameters).fetchall()
    database.execute("DROP TABLE chunk")
    return counts


def _expected_rows(connection: sa.Connection, query: str) -> int:
    """Return the number of rows that Postgres estimates for a query, without running it."""
    options = {"no_parameters": True}  # an id may have a percent sign
    found = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {query}", execution_options=options)
    plan: Any = found.scalar()
    return max(int(plan[0]["Plan"]["Plan Rows"]), 1)


def _record(database: duckdb.DuckDBPyConnection, identity: str, pulled_as: str) -> None:
    counts = [database.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0] for table in COUNTED]
    about = dict(zip(COUNTED, counts, strict=True)) | {
        "version": VERSION,
        "pulled_as": pulled_as,
        "database": identity,
    }
    database.executemany(
        "INSERT INTO about VALUES (?, ?)", [(name, json.dumps(value)) for name, value in about.items()]
    )


def database_identity(connection: sa.Connection) -> str:
    """Return an identifier of the database: its name, and the ids of database and schema."""
    return str(connection.scalar(IDENTITY, {"schema": SCHEMA}))
