"""The night's copy of the interactions: a DuckDB file, written by pull.py and read by this package.

Tables of a store:

    users (user_row INTEGER, user_id BIGINT)     rows 0, 1, 2 ... in the order of the ids;
                                                 the id of a forgotten user is null
    posts (post_row INTEGER, post_id BIGINT)     ids that are uuids or text are VARCHAR
    interactions (user_row INTEGER, post_row INTEGER, action ENUM, happened_at TIMESTAMP)
    unlikes (user_row INTEGER, post_row INTEGER, happened_at TIMESTAMP)
    taken_back (user_row INTEGER, post_row INTEGER, happened_at TIMESTAMP, undone_at TIMESTAMP)
    about (name VARCHAR, value VARCHAR)          source, version and row counts, as JSON values

`interactions` holds the views and likes of known users and posts that have a
time (UTC). The rows of each insert are sorted by user, so that a query for a
range of users reads a fraction of the file.

A like that a later `unlike` undoes is in `taken_back` instead. It is a like from
`happened_at` until `undone_at`, so it is counted as of each cutoff in between.
The view `actions` has all rows as they were pulled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from batch.arrays import Int64s
from batch.files import folder_error, store_folder
from contract.columns import LIKE_ACTION, UNLIKE_ACTION, VIEW_ACTION
from contract.errors import InteractionStoreError
from contract.manifest import Manifest
from contract.settings import Settings

FILE = "store.duckdb"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
END_OF_TIME = datetime.max.replace(tzinfo=UTC)
YEAR_ONE = datetime(1, 1, 1, tzinfo=UTC)
NO_TIME = -(2**62)
VERSION = 2
"""Version of the tables above; stores of other versions are refused."""

PART_ROWS = 2_000_000
"""Approximate number of interactions per range of users; it bounds the memory of a query."""

USERS_PER_BUCKET = 256

COUNTED = ("users", "posts", "interactions", "unlikes")
"""Tables whose numbers of rows are recorded, so that a wrong store is noticed."""

LATEST = """
    SELECT coalesce(epoch_us(max(happened_at)), $none) AS latest
    FROM {pulled} WHERE happened_at <= $until
"""

FORGOTTEN = "user_id IN (SELECT unnest($forgotten))"
TABLES_OF_NIGHT = """
    SELECT table_name, bool_or(column_name = 'user_row') AS of_users
    FROM duckdb_tables() JOIN duckdb_columns() USING (database_name, table_name)
    WHERE database_name = 'night' GROUP BY table_name ORDER BY table_name
"""
COPY_USERS = f"""
    INSERT INTO copy.users
    SELECT * REPLACE (CASE WHEN {FORGOTTEN} THEN NULL ELSE user_id END AS user_id) FROM night.users
"""
COPY_OTHERS = f"""
    INSERT INTO copy.{{table}} FROM night.{{table}}
    WHERE user_row NOT IN (SELECT user_row FROM night.users WHERE {FORGOTTEN})
"""

TABLES = f"""
    CREATE TYPE action AS ENUM ('{VIEW_ACTION}', '{LIKE_ACTION}', '{UNLIKE_ACTION}');
    CREATE TABLE users (user_row INTEGER, user_id {{users}});
    CREATE TABLE posts (post_row INTEGER, post_id {{posts}});
    CREATE TABLE interactions (user_row INTEGER, post_row INTEGER, action action, happened_at TIMESTAMP);
    CREATE TABLE unlikes (user_row INTEGER, post_row INTEGER, happened_at TIMESTAMP);
    CREATE TABLE taken_back (user_row INTEGER, post_row INTEGER, happened_at TIMESTAMP, undone_at TIMESTAMP);
    CREATE TABLE about (name VARCHAR, value VARCHAR);
    CREATE VIEW actions AS
    SELECT user_row, post_row, action, happened_at FROM interactions UNION ALL
    SELECT user_row, post_row, '{LIKE_ACTION}'::action, happened_at FROM taken_back UNION ALL
    SELECT user_row, post_row, '{UNLIKE_ACTION}'::action, happened_at FROM unlikes;
"""
TAKE_BACK = f"""
    CREATE TEMP TABLE undone AS
    SELECT l.user_row, l.post_row, l.happened_at, u.happened_at AS undone_at
    FROM (
        SELECT user_row, post_row, happened_at FROM interactions SEMI JOIN unlikes USING (user_row, post_row)
        WHERE action = '{LIKE_ACTION}'
    ) l ASOF JOIN unlikes u
      ON l.user_row = u.user_row AND l.post_row = u.post_row AND l.happened_at <= u.happened_at;
    INSERT INTO taken_back SELECT * FROM undone ORDER BY ALL;
    DELETE FROM interactions i USING undone u
    WHERE i.action = '{LIKE_ACTION}' AND i.user_row = u.user_row AND i.post_row = u.post_row
      AND i.happened_at = u.happened_at;
    DROP TABLE undone;
"""
"""Moves likes with a later unlike; of likes and an unlike at the same time, the unlike is the later."""

ANY_UNLIKES = "SELECT EXISTS (FROM unlikes)"


@dataclass(frozen=True)
class StoreOptions:
    """Memory in MiB, threads (0: all cores), and the folder for temporary files."""

    memory_mib: int
    threads: int
    spill_folder: Path

    @classmethod
    def of(cls, settings: Settings, spill_folder: Path) -> StoreOptions:
        """Build from the settings for memory and threads."""
        return cls(settings.night.store_memory_mib, settings.night.threads, spill_folder)

    def as_config(self) -> dict[str, Any]:
        """Return DuckDB's configuration."""
        threads = {"threads": self.threads} if self.threads else {}
        return threads | {
            "memory_limit": f"{self.memory_mib}MiB",
            "temp_directory": str(self.spill_folder),
            "preserve_insertion_order": False,  # queries that need an order have ORDER BY
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }


@dataclass
class InteractionStore:
    """An interaction store; it is opened by its first query.

    Attributes
    ----------
    path
        The DuckDB file; None for a store in memory, which needs a connection.
    """

    path: Path | None
    options: StoreOptions
    _connection: duckdb.DuckDBPyConnection | None = field(default=None, repr=False, compare=False)

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """The connection, read-only for a file."""
        if self._connection is None:
            if self.path is None:
                raise InteractionStoreError("the interaction store is closed")
            with readable_errors(self.path):
                config = self.options.as_config()
                self._connection = duckdb.connect(str(self.path), read_only=True, config=config)
        return self._connection

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def release(self) -> None:
        """Free the memory of the connection to a file; the next query opens the file again."""
        if self.path is not None:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "options": self.options, "_connection": None}

    def arrays(self, query: str, parameters: dict[str, Any] | None = None) -> dict[str, npt.NDArray[Any]]:
        """Run a query and return its columns; no value may be null.

        Parameters
        ----------
        parameters
            Values by name, `$name` in the query; times are converted to UTC.
        """
        naive = {
            name: _naive(value) if isinstance(value, datetime) else value
            for name, value in (parameters or {}).items()
        }
        with readable_errors(self.path):
            found = self.connection.execute(query, naive or None).fetchnumpy()
        return {name: np.asarray(column) for name, column in found.items()}

    def scalar(self, query: str, parameters: dict[str, Any] | None = None) -> Any:
        """Run a query that returns one value, and return the value."""
        (column,) = self.arrays(query, parameters).values()
        return column[0].item()

    @cached_property
    def has_unlikes(self) -> bool:
        """Whether any like may be taken back."""
        return bool(self.scalar(ANY_UNLIKES))

    @property
    def pulled(self) -> str:
        """SQL name of the relation of all rows as they were pulled, unlikes included."""
        return "actions" if self.has_unlikes else "interactions"

    def known_at(self, time: datetime) -> str:
        """Return a relation in SQL: views and likes of all times, without the likes taken back by `time`."""
        if not self.has_unlikes:
            return "interactions"
        return (
            "(SELECT user_row, post_row, action, happened_at FROM interactions UNION ALL "
            f"SELECT user_row, post_row, '{LIKE_ACTION}'::action, happened_at FROM taken_back "
            f"WHERE undone_at > TIMESTAMP '{_naive(time).isoformat(sep=' ')}')"
        )

    def latest(self, until: datetime) -> datetime | None:
        """Return the time (UTC) of the last interaction up to `until`; None if there is none."""
        latest = self.scalar(LATEST.format(pulled=self.pulled), {"until": until, "none": NO_TIME})
        return None if latest == NO_TIME else to_time(latest)

    def user_ranges(self) -> list[tuple[int, int]]:
        """Return ranges (start, stop) of user rows with about `PART_ROWS` interactions each.

        The ranges cover all users, in order.
        """
        users = self.scalar("SELECT count(*) FROM users")
        counted = self.arrays(
            f"SELECT user_row // {USERS_PER_BUCKET} AS bucket, count(*) AS rows FROM interactions GROUP BY 1"
        )
        rows = np.zeros(-(-users // USERS_PER_BUCKET), np.int64)
        rows[counted["bucket"]] = counted["rows"]
        part = np.cumsum(rows) // PART_ROWS
        starts = np.flatnonzero(np.diff(part, prepend=-1)) * USERS_PER_BUCKET
        return list(zip(starts.tolist(), [*starts[1:].tolist(), users], strict=True))

    @property
    def interactions(self) -> int:
        """Number of views, and of likes that were not taken back."""
        return int(self.scalar("SELECT count(*) FROM interactions"))

    @property
    def taken_back(self) -> int:
        """Number of likes that were taken back."""
        return int(self.scalar("SELECT count(*) FROM taken_back"))

    @property
    def mib(self) -> float:
        """Size of the file in MiB; 0 in memory."""
        return 0.0 if self.path is None else round(self.path.stat().st_size / 2**20, 1)

    def about(self) -> dict[str, Any]:
        """Return what pull.py recorded about the store."""
        with readable_errors(self.path):
            rows = self.connection.execute("SELECT name, value FROM about").fetchall()
        return {name: json.loads(value) for name, value in rows}


def _naive(time: datetime) -> datetime:
    """Return the time in UTC as the store has it: without a time zone."""
    return time.astimezone(UTC).replace(tzinfo=None)


def take_back_likes(database: duckdb.DuckDBPyConnection) -> None:
    """Move the likes that a later unlike undoes from `interactions` to `taken_back`."""
    (unlikes,) = database.execute(ANY_UNLIKES).fetchone() or (False,)
    if unlikes:
        database.execute(TAKE_BACK)


def to_time(microseconds: int) -> datetime:
    """Convert microseconds since 1970 to a time (UTC); earlier than the year 1 becomes the year 1."""
    earliest = (YEAR_ONE - EPOCH) // timedelta(microseconds=1)
    return EPOCH + timedelta(microseconds=max(microseconds, earliest))


def share_store(store: InteractionStore, folder: Path) -> None:
    """Put the store into the folder of another run of the same night: a hard link, or else a copy.

    It replaces a store that is there.

    Raises
    ------
    InteractionStoreError
        The disk is full, or the folder cannot be written.
    """
    if store.path is None:
        raise InteractionStoreError("a store in memory cannot be shared")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{FILE}.unfinished"
        unfinished.unlink(missing_ok=True)
        try:
            os.link(store.path, unfinished)
        except OSError:  # a file system without hard links
            shutil.copyfile(store.path, unfinished)
        unfinished.replace(folder / FILE)
    except OSError as error:
        raise folder_error(folder, error) from None


def copy_without_users(store: InteractionStore, path: Path, user_ids: Int64s) -> InteractionStore:
    """Copy a store to a new file, without the ids and the interactions of some users.

    The users keep their rows, which have a null id, so that all other rows stay as they are. A copy holds
    none of their bytes; rows that are deleted in place can still be in the file.

    Raises
    ------
    InteractionStoreError
        The store cannot be read, or the disk is full.
    """
    config = store.options.as_config() | {"preserve_insertion_order": True}
    parameters = {"forgotten": user_ids.tolist()}
    with readable_errors(path), duckdb.connect(config=config) as database:
        night, copy = (str(file).replace("'", "''") for file in (store.path, path))
        database.execute(f"ATTACH '{night}' AS night (READ_ONLY)")
        database.execute(f"ATTACH '{copy}' AS copy")
        database.execute("COPY FROM DATABASE night TO copy (SCHEMA)")
        tables = database.execute(TABLES_OF_NIGHT).fetchall()  # earlier releases have others
        for table, of_users in tables:
            if table == "users":
                database.execute(COPY_USERS, parameters)
            elif of_users:
                database.execute(COPY_OTHERS.format(table=table), parameters)
            else:
                database.execute(f"INSERT INTO copy.{table} FROM night.{table}")
        for table, _ in tables:
            count = f"(SELECT count(*) FROM copy.{table})::VARCHAR"
            database.execute(f"UPDATE copy.about SET value = {count} WHERE name = '{table}'")
        database.execute("DETACH copy")  # writes everything to the file
    return InteractionStore(path, store.options)


@contextmanager
def readable_errors(path: Path | None) -> Iterator[None]:
    """Convert DuckDB's errors to one line with advice.

    Raises
    ------
    InteractionStoreError
        Instead of DuckDB's error.
    """
    try:
        yield
    except duckdb.Error as error:
        reason = " ".join(str(error).split())
        lower = reason.lower()
        if "no space" in lower or "temp_directory" in lower or "could not write" in lower:
            advice = "free space or set OVERNIGHT_STORE_DIR"
        elif "set lock" in lower:
            advice = "close the process that has it open; the next refresh includes the users of this one"
        elif isinstance(error, duckdb.OutOfMemoryException):
            advice = "raise OVERNIGHT_STORE_MEMORY_MIB"
        else:
            advice = "run the night again"
        where = "in memory" if path is None else path
        raise InteractionStoreError(f"the interaction store {where}: {reason[:500]}; {advice}") from None


def open_store(settings: Settings, manifest: Manifest, options: StoreOptions) -> InteractionStore:
    """Open the store of a run, and check that it is complete and belongs to the run.

    Parameters
    ----------
    manifest
        Its `store` is from `store_identity`; runs older than interaction stores have none.

    Raises
    ------
    InteractionStoreError
        The store is missing, truncated, of another version, of another run or of another database.
    """
    path, expected = store_folder(settings) / manifest.run_id / FILE, manifest.store
    again = "run the night again"
    if expected is None or not path.is_file():
        raise InteractionStoreError(f"there is no interaction store {path}; {again}")
    if path.stat().st_size != expected["bytes"]:
        raise InteractionStoreError(
            f"the interaction store {path} has {path.stat().st_size} bytes, not {expected['bytes']}; {again}"
        )
    store = InteractionStore(path, options)
    try:
        found = store.about()
        if found.get("version") != VERSION:
            raise InteractionStoreError(
                f"the interaction store {path} is of version {found.get('version')}, "
                f"this program reads version {VERSION}; {again}"
            )
        for name in ("pulled_as", "database", *COUNTED):
            if found.get(name) != expected[name]:
                raise InteractionStoreError(
                    f"the interaction store {path} is another run's: {name} is {found.get(name)!r}, "
                    f"not {expected[name]!r}; {again}"
                )
        for table in COUNTED:
            rows = store.scalar(f"SELECT count(*) FROM {table}")
            if rows != found[table]:
                raise InteractionStoreError(
                    f"the interaction store {path} has {rows} {table}, not {found[table]}; {again}"
                )
    except BaseException:
        store.close()
        raise
    return store


def store_identity(store: InteractionStore) -> dict[str, Any]:
    """Return what a run's manifest records of its store, for the checks of `open_store`."""
    size = 0 if store.path is None else store.path.stat().st_size
    return store.about() | {"bytes": size}
