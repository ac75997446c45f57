"""The run ledger in Postgres: every run, its state, and who changed it when and why."""

from __future__ import annotations

import getpass
import os
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, insert

from contract.columns import SCHEMA
from contract.errors import OvernightError
from contract.keys import Keys
from contract.run_id import make_run_id


class State(StrEnum):
    """building -> built -> live -> retired, or failed, refused, rolled_back."""

    BUILDING = "building"
    BUILT = "built"
    LIVE = "live"
    RETIRED = "retired"
    FAILED = "failed"
    REFUSED = "refused"
    ROLLED_BACK = "rolled_back"


tables = sa.MetaData(schema=SCHEMA)
time = sa.DateTime(timezone=True)
runs = sa.Table(
    "runs",
    tables,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("variant", sa.Text, nullable=False),
    sa.Column("key_prefix", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("cutoff", time),
    sa.Column("started_at", time, nullable=False),
    sa.Column("finished_at", time),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("manifest", JSONB),
)
changes = sa.Table(
    "run_changes",
    tables,
    sa.Column("run_id", sa.Text, sa.ForeignKey(runs.c.run_id), nullable=False, index=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("at", time, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
)


@dataclass(frozen=True)
class Run:
    """One variant built once."""

    run_id: str
    variant: str
    key_prefix: str = Keys().prefix


def actor(command: str) -> str:
    """Say who acts: the command, the user, the host and the process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{command} by {user}@{socket.gethostname()} pid {os.getpid()}"


def create(engine: sa.Engine) -> None:
    """Make the ledger's tables where they are missing."""
    tables.create_all(engine)


def start(engine: sa.Engine, variant: str, now: datetime, who: str, key_prefix: str = Keys().prefix) -> Run:
    """Enter a new run, named by the time in UTC and its variant; a taken name moves to the next second."""
    moment = now
    with engine.begin() as connection:
        while True:
            run = Run(make_run_id(moment, variant), variant, key_prefix)
            row = {
                "run_id": run.run_id,
                "variant": variant,
                "key_prefix": key_prefix,
                "state": State.BUILDING,
                "started_at": now,
                "actor": who,
            }
            entered = connection.execute(insert(runs).values(row).on_conflict_do_nothing())
            if entered.rowcount == 1:
                _note(connection, run.run_id, State.BUILDING, now, who, None)
                return run
            moment += timedelta(seconds=1)


def move(
    connection: sa.Connection,
    run_id: str,
    state: State,
    now: datetime,
    who: str,
    reason: str | None = None,
    **values: Any,
) -> None:
    """Bring a run into a state, noting who did it and why; `values` are further columns to set."""
    over = {"finished_at": now} if state in (State.FAILED, State.REFUSED, State.LIVE) else {}
    change = {"state": state, "reason": reason} | over | values
    connection.execute(sa.update(runs).where(runs.c.run_id == run_id).values(change))
    _note(connection, run_id, state, now, who, reason)


def note_built(engine: sa.Engine, run: Run, now: datetime, who: str, manifest: dict[str, Any]) -> None:
    """Enter that a run is written and checked, and is about to go live.

    Raises
    ------
    OvernightError
        Another run has closed this one: the lock was lost with its connection.
    """
    with engine.begin() as connection:
        _still_open(connection, run, State.BUILDING)
        move(connection, run.run_id, State.BUILT, now, who, manifest=manifest)


def make_live(connection: sa.Connection, run: Run, now: datetime, who: str, **values: Any) -> None:
    """Bring a run live and retire the one of its variant that was.

    Raises
    ------
    OvernightError
        Another run has closed this one: the lock was lost with its connection.
    """
    _still_open(connection, run, State.BUILDING, State.BUILT)
    for run_id in connection.scalars(
        sa.select(runs.c.run_id).where(
            runs.c.variant == run.variant,
            runs.c.key_prefix == run.key_prefix,
            runs.c.state == State.LIVE,
            runs.c.run_id != run.run_id,
        )
    ).all():
        move(connection, run_id, State.RETIRED, now, who, f"{run.run_id} went live")
    move(connection, run.run_id, State.LIVE, now, who, **values)


def _still_open(connection: sa.Connection, run: Run, *states: State) -> None:
    state = connection.scalar(sa.select(runs.c.state).where(runs.c.run_id == run.run_id).with_for_update())
    if state not in states:
        raise OvernightError(
            f"{run.run_id} is {state}, closed by another run when Postgres was lost; run again"
        )


def kept(engine: sa.Engine, key_prefix: str, count: int) -> set[str]:
    """Return the runs whose keys stay: per variant the live one and the newest retired, `count` in all."""
    newest = sa.select(
        runs.c.run_id,
        sa.func.row_number()
        .over(partition_by=runs.c.variant, order_by=[runs.c.state != State.LIVE, runs.c.run_id.desc()])
        .label("place"),
    ).where(runs.c.key_prefix == key_prefix, runs.c.state.in_([State.LIVE, State.RETIRED]))
    ranked = newest.subquery()
    with engine.connect() as connection:
        return set(connection.scalars(sa.select(ranked.c.run_id).where(ranked.c.place <= count)))


def unfinished(engine: sa.Engine, key_prefix: str) -> list[Run]:
    """Return the runs that say they are being built: under the lock, those that died."""
    query = sa.select(runs.c.run_id, runs.c.variant).where(
        runs.c.key_prefix == key_prefix, runs.c.state.in_([State.BUILDING, State.BUILT])
    )
    with engine.connect() as connection:
        return [Run(row.run_id, row.variant, key_prefix) for row in connection.execute(query)]


def entered(engine: sa.Engine, key_prefix: str) -> set[str]:
    """Return every run that was ever started under a key prefix."""
    with engine.connect() as connection:
        return set(connection.scalars(sa.select(runs.c.run_id).where(runs.c.key_prefix == key_prefix)))


def others(variant: str, key_prefix: str, run_id: str) -> sa.Select[Any]:
    """Return a query of all runs of a variant under a key prefix but one."""
    ours = runs.c.variant == variant, runs.c.key_prefix == key_prefix
    return sa.select(runs.c.run_id).where(*ours, runs.c.run_id != run_id)


def latest_start(engine: sa.Engine) -> datetime | None:
    """Return when the newest run was started; None where there is none, or no ledger yet."""
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table(runs.name, schema=SCHEMA):
            return None
        found: datetime | None = connection.scalar(sa.select(sa.func.max(runs.c.started_at)))
        return found


def newest(engine: sa.Engine, count: int) -> list[sa.Row[Any]]:
    """Return the newest runs, newest first."""
    with engine.connect() as connection:
        return list(connection.execute(sa.select(runs).order_by(runs.c.started_at.desc()).limit(count)))


def find(engine: sa.Engine, run_id: str) -> tuple[sa.Row[Any], list[sa.Row[Any]]] | None:
    """Return a run and its changes, oldest first."""
    with engine.connect() as connection:
        run = connection.execute(sa.select(runs).where(runs.c.run_id == run_id)).first()
        if run is None:
            return None
        history = sa.select(changes).where(changes.c.run_id == run_id).order_by(changes.c.at)
        return run, list(connection.execute(history))


def _note(
    connection: sa.Connection, run_id: str, state: State, now: datetime, who: str, reason: str | None
) -> None:
    row = {"run_id": run_id, "state": state, "at": now, "actor": who, "reason": reason}
    connection.execute(sa.insert(changes).values(row))
