"""The night's copy of the interactions: a DuckDB file that pull.py writes and the modules beside it read.

Tables of a store:

    users (user_row INTEGER, user_id BIGINT)     rows 0, 1, 2 ... in the order of the ids
    posts (post_row INTEGER, post_id BIGINT)
    interactions (user_row INTEGER, post_row INTEGER, action ENUM, happened_at TIMESTAMP)
    about (name VARCHAR, value VARCHAR)          what the store is a copy of, as JSON values

`interactions` holds the views and likes of known users and posts that have a
time (UTC). Each stretch of rows that was inserted at once is sorted by user,
so that a query for a range of users reads a fraction of the file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from batch.loading.work_folder import store_folder
from contract.columns import LIKE_ACTION, VIEW_ACTION
from contract.errors import InteractionStoreError
from contract.settings import Settings

FILE = "store.duckdb"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
YEAR_ONE = datetime(1, 1, 1, tzinfo=UTC)
NO_TIME = -(2**62)
VERSION = 1
"""Of the tables above; a store of another version is refused."""

PART_ROWS = 2_000_000
"""About so many interactions are counted at a time; it bounds the memory."""

USERS_PER_BUCKET = 256

LATEST = """
    SELECT coalesce(epoch_us(max(happened_at)), $none) AS latest
    FROM interactions WHERE happened_at <= $until
"""

TABLES = f"""
    CREATE TYPE action AS ENUM ('{VIEW_ACTION}', '{LIKE_ACTION}');
    CREATE TABLE users (user_row INTEGER, user_id BIGINT);
    CREATE TABLE posts (post_row INTEGER, post_id BIGINT);
    CREATE TABLE interactions (user_row INTEGER, post_row INTEGER, action action, happened_at TIMESTAMP);
    CREATE TABLE about (name VARCHAR, value VARCHAR);
"""


@dataclass(frozen=True)
class StoreOptions:
    """Memory in MiB, threads (0: every core), and the folder for what does not fit in memory."""

    memory_mib: int
    threads: int
    spill_folder: Path

    @classmethod
    def of(cls, settings: Settings, spill_folder: Path) -> StoreOptions:
        """Take memory and threads from the settings."""
        return cls(settings.night.store_memory_mib, settings.night.threads, spill_folder)

    def as_config(self) -> dict[str, Any]:
        """Return DuckDB's configuration."""
        threads = {"threads": self.threads} if self.threads else {}
        return threads | {
            "memory_limit": f"{self.memory_mib}MiB",
            "temp_directory": str(self.spill_folder),
            "preserve_insertion_order": False,  # every query here orders its rows itself
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }


@dataclass
class InteractionStore:
    """A store that is open, or is opened when it is first asked.

    Attributes
    ----------
    path
        The DuckDB file; None for a store in memory, whose connection is given.
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
        """Give the memory of a file's connection back; the next query opens the file again."""
        if self.path is not None:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "options": self.options, "_connection": None}

    def arrays(self, query: str, parameters: dict[str, Any] | None = None) -> dict[str, npt.NDArray[Any]]:
        """Return the columns of a query's result; no value of it may be null.

        Parameters
        ----------
        parameters
            Values by name, `$name` in the query; times are taken as UTC.
        """
        naive = {
            name: value.astimezone(UTC).replace(tzinfo=None) if isinstance(value, datetime) else value
            for name, value in (parameters or {}).items()
        }
        with readable_errors(self.path):
            found = self.connection.execute(query, naive or None).fetchnumpy()
        return {name: np.asarray(column) for name, column in found.items()}

    def scalar(self, query: str, parameters: dict[str, Any] | None = None) -> Any:
        """Return the one value of a query's result."""
        (column,) = self.arrays(query, parameters).values()
        return column[0].item()

    def latest(self, until: datetime) -> datetime | None:
        """Return when the last interaction up to a time happened (UTC); None if none did."""
        latest = self.scalar(LATEST, {"until": until, "none": NO_TIME})
        return None if latest == NO_TIME else to_time(latest)

    def user_ranges(self) -> list[tuple[int, int]]:
        """Return ranges of user rows (start, stop) that have about `PART_ROWS` interactions each.

        Together they cover all users, in order.
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
        """How many interactions the store holds."""
        return int(self.scalar("SELECT count(*) FROM interactions"))

    @property
    def mib(self) -> float:
        """Size of the file in MiB; 0 in memory."""
        return 0.0 if self.path is None else round(self.path.stat().st_size / 2**20, 1)

    def about(self) -> dict[str, Any]:
        """Return what pull.py recorded of the store."""
        with readable_errors(self.path):
            rows = self.connection.execute("SELECT name, value FROM about").fetchall()
        return {name: json.loads(value) for name, value in rows}


def to_time(microseconds: int) -> datetime:
    """Return the time (UTC) so long after 1970; the year 1 for what is earlier."""
    earliest = (YEAR_ONE - EPOCH) // timedelta(microseconds=1)
    return EPOCH + timedelta(microseconds=max(microseconds, earliest))


def share_store(store: InteractionStore, folder: Path) -> None:
    """Give another run of the same night the same store: a second name of one file, or a copy of it.

    Raises
    ------
    InteractionStoreError
        The disk is full, or the folder cannot be written.
    """
    if store.path is None:
        raise InteractionStoreError("a store in memory cannot be shared")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            os.link(store.path, folder / FILE)
        except OSError:  # a file system without hard links
            shutil.copyfile(store.path, folder / FILE)
    except OSError as error:
        reason = f"{error.strerror}; free space or set OVERNIGHT_STORE_DIR"
        raise InteractionStoreError(f"cannot keep interactions in {folder}: {reason}") from None


@contextmanager
def readable_errors(path: Path | None) -> Iterator[None]:
    """Turn DuckDB's errors into one line that says what to do.

    Raises
    ------
    InteractionStoreError
        In place of DuckDB's error.
    """
    try:
        yield
    except duckdb.Error as error:
        reason = " ".join(str(error).split())
        lower = reason.lower()
        if "no space" in lower or "temp_directory" in lower or "could not write" in lower:
            advice = "free space or set OVERNIGHT_STORE_DIR"
        elif "set lock" in lower:
            advice = "close the process that has it open; the next refresh does what this one did not"
        elif isinstance(error, duckdb.OutOfMemoryException):
            advice = "raise OVERNIGHT_STORE_MEMORY_MIB"
        else:
            advice = "run the night again"
        where = "in memory" if path is None else path
        raise InteractionStoreError(f"the interaction store {where}: {reason[:500]}; {advice}") from None


def open_store(settings: Settings, manifest: dict[str, Any], options: StoreOptions) -> InteractionStore:
    """Open the store of a run, and check that it is whole and is the one that the run's manifest records.

    Parameters
    ----------
    manifest
        Its `store` is what `identity` says of the store; a run made before there were stores has none.

    Raises
    ------
    InteractionStoreError
        There is none, it is cut short, of another version, of another run or of another database.
    """
    path, expected = store_folder(settings) / manifest["run_id"] / FILE, manifest.get("store")
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
        for name in ("pulled_as", "database", "users", "posts", "interactions"):
            if found.get(name) != expected[name]:
                raise InteractionStoreError(
                    f"the interaction store {path} is another run's: {name} is {found.get(name)!r}, "
                    f"not {expected[name]!r}; {again}"
                )
        for table in ("users", "posts", "interactions"):
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
    """Return what the manifest of a run keeps of its store, so that `open_store` can check it."""
    size = 0 if store.path is None else store.path.stat().st_size
    return store.about() | {"bytes": size}
