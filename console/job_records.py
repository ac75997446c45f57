"""Jobs in Postgres, `recs.console_jobs`: who ran what, how it ended, its log and its output."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from batch.context import Stores
from batch.runs import ledger
from batch.runs.tables import console_jobs, has_table
from console.job_kinds import KINDS, make_arguments

LOST_AFTER = timedelta(seconds=60)
"""A job whose console has not recorded for so long that it runs is lost: the console has died."""

KEPT_DAYS = 90
"""Days that a job is kept in Postgres."""

LOST = "lost: the console that ran it ended; what it did until then is in the runs and the log"


@dataclass(frozen=True)
class JobRecord:
    """A job as pages see it.

    Attributes
    ----------
    arguments
        Of its kind, such as `user` and `run`; a list gives several arguments of the command.
    actor
        The name that signed in.
    ended_at
        None while it runs. Of a lost job: when it was last seen.
    exit_code, meaning
        None while it runs; the meaning is the exit code in words.
    log
        The last lines of what it logged.
    output
        What it printed, if its kind prints JSON, and it printed that.
    host
        The host of the console that runs it.
    stopped
        Why it is being stopped, while it still runs.
    """

    job_id: str
    kind: str
    actor: str
    started_at: datetime
    reason: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    ended_at: datetime | None = None
    exit_code: int | None = None
    meaning: str | None = None
    log: str = ""
    output: Any = None
    host: str = ""
    stopped: str | None = None

    @property
    def command(self) -> str:
        """The command, as one types it."""
        kind = KINDS.get(self.kind)
        if kind is None:  # of a newer release
            return self.kind
        return shlex.join(["python", "-m", "batch", *make_arguments(kind, self.arguments)])

    @property
    def title(self) -> str:
        """Its kind in words."""
        kind = KINDS.get(self.kind)
        return self.kind if kind is None else kind.title

    @property
    def reads_only(self) -> bool:
        """Whether it changes nothing."""
        return self.kind in KINDS and KINDS[self.kind].reads_only

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.ended_at is None


def insert_start(stores: Stores, record: JobRecord) -> None:
    """Record that a job starts, and remove those of KEPT_DAYS ago.

    Raises
    ------
    SourceError
        Postgres cannot record it.
    """
    row = {
        "job_id": record.job_id, "key_prefix": stores.keys.prefix, "kind": record.kind,
        "arguments": record.arguments, "actor": record.actor, "reason": record.reason, "host": record.host,
        "started_at": record.started_at,
    }  # fmt: skip
    with stores.readable_errors():
        ledger.create(stores.engine)
        with stores.engine.begin() as connection:
            old = console_jobs.c.started_at < record.started_at - timedelta(days=KEPT_DAYS)
            ours = console_jobs.c.key_prefix == stores.keys.prefix
            connection.execute(sa.delete(console_jobs).where(ours, old))
            connection.execute(sa.insert(console_jobs).values(row))


def record_running(stores: Stores, job_id: str, log: str | None) -> None:
    """Record that a job runs, and its log if that has changed; raises SourceError."""
    _update(stores, job_id, {} if log is None else {"log": log})


def record_end(stores: Stores, record: JobRecord) -> None:
    """Record how a job ended; raises SourceError."""
    columns = {
        "ended_at": record.ended_at, "exit_code": record.exit_code, "meaning": record.meaning,
        "log": record.log, "output": sa.null() if record.output is None else record.output,
    }  # fmt: skip
    _update(stores, record.job_id, columns)


def _update(stores: Stores, job_id: str, columns: dict[str, Any]) -> None:
    update = sa.update(console_jobs).where(console_jobs.c.job_id == job_id)
    with stores.readable_errors(), stores.engine.begin() as connection:
        connection.execute(update.values(columns | {"seen_at": sa.func.now()}))


def find(stores: Stores, job_id: str) -> JobRecord | None:
    """Return a recorded job; None if there is none. Raises SourceError."""
    return _first(stores, _select(stores).where(console_jobs.c.job_id == job_id))


def find_latest(
    stores: Stores, kind: str, arguments: Mapping[str, Any], *, with_output: bool
) -> JobRecord | None:
    """Return the newest recorded job of a kind with these arguments; None if there is none.

    Raises
    ------
    SourceError
        Postgres cannot be read.
    """
    query = _select(stores).where(console_jobs.c.kind == kind, console_jobs.c.arguments == dict(arguments))
    if with_output:
        query = query.where(console_jobs.c.output.is_not(None))
    return _first(stores, query.order_by(console_jobs.c.started_at.desc()).limit(1))


def list_running(stores: Stores) -> list[JobRecord]:
    """Return the jobs of all consoles that run and are not lost, newest first; without log and output."""
    query = _select(stores, full=False).where(console_jobs.c.ended_at.is_(None), ~is_lost())
    with stores.readable_errors(), stores.engine.connect() as connection:
        if not has_table(connection, console_jobs):
            return []
        return [_to_record(row) for row in connection.execute(query.order_by(*NEWEST_FIRST).limit(50))]


def list_page(stores: Stores, before: tuple[datetime, str] | None, count: int) -> list[JobRecord]:
    """Return recorded jobs that have ended, newest start first, without log and output.

    Parameters
    ----------
    before
        Start and id of the last job of the page before; None for the first page.
    """
    ended = sa.or_(console_jobs.c.ended_at.is_not(None), is_lost())
    query = _select(stores, full=False).where(ended).order_by(*NEWEST_FIRST).limit(count)
    if before is not None:
        last = sa.tuple_(sa.literal(before[0]), sa.literal(before[1]))
        query = query.where(sa.tuple_(console_jobs.c.started_at, console_jobs.c.job_id) < last)
    with stores.readable_errors(), stores.engine.connect() as connection:
        if not has_table(connection, console_jobs):
            return []
        return [_to_record(row) for row in connection.execute(query)]


NEWEST_FIRST = console_jobs.c.started_at.desc(), console_jobs.c.job_id.desc()


def is_lost() -> sa.ColumnElement[bool]:
    """Return the condition that a recorded job is lost: its console has died."""
    unended = console_jobs.c.ended_at.is_(None)
    return sa.and_(unended, console_jobs.c.seen_at < sa.func.now() - LOST_AFTER)


def _select(stores: Stores, *, full: bool = True) -> sa.Select[Any]:
    large = {"log", "output"}
    columns = [column for column in console_jobs.c if full or column.name not in large]
    query = sa.select(*columns, is_lost().label("lost"))
    return query.where(console_jobs.c.key_prefix == stores.keys.prefix)


def _first(stores: Stores, query: sa.Select[Any]) -> JobRecord | None:
    with stores.readable_errors(), stores.engine.connect() as connection:
        if not has_table(connection, console_jobs):
            return None
        row = connection.execute(query).first()
        return None if row is None else _to_record(row)


def _to_record(row: sa.Row[Any]) -> JobRecord:
    fields = dict(row._mapping)
    lost, seen_at = fields.pop("lost"), fields.pop("seen_at")
    del fields["key_prefix"]
    fields["log"] = fields.get("log") or ""
    if lost:
        fields |= {"ended_at": seen_at, "meaning": LOST}
    return JobRecord(**fields)
