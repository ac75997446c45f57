"""The run ledger in Postgres: every run, its state, and who changed it when and why."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from batch.runs.tables import State, changes, create, runs, schema_version
from contract.columns import SCHEMA
from contract.errors import OvernightError
from contract.keys import Keys
from contract.run_id import make_run_id

__all__ = [
    "Run", "Standing", "State", "actor", "agree", "create", "find", "latest_start",
    "make_live", "mark_removed", "move", "newest", "note_built", "refuse", "removed", "roll_back", "runs",
    "schema_version", "standing", "start", "state_of", "switching", "to_go_back_to", "unfinished",
]  # fmt: skip

SWITCH = sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
PATIENCE = sa.text("SET LOCAL lock_timeout = '20s'")


@dataclass(frozen=True)
class Run:
    """One variant built once."""

    run_id: str
    variant: str
    key_prefix: str = Keys().prefix


@dataclass(frozen=True)
class Standing:
    """How a run stands: its state, and since when."""

    run_id: str
    variant: str
    state: State
    since: datetime


def actor(command: str) -> str:
    """Say who acts: the command, the user, the host and the process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{command} by {user}@{socket.gethostname()} pid {os.getpid()}"


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


@contextmanager
def switching(engine: sa.Engine, key_prefix: str) -> Iterator[sa.Connection]:
    """Open a transaction beside which no other one under the prefix switches what is live, or removes runs.

    It is short, and never held while a run is built; so a rollback need not
    wait for a night.
    """
    with engine.begin() as connection:
        connection.execute(PATIENCE)
        connection.execute(SWITCH, {"name": f"overnight switch:{key_prefix}"})
        yield connection


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


def make_live(
    connection: sa.Connection, run: Run, now: datetime, who: str, reason: str | None = None, **values: Any
) -> None:
    """Bring a run live and retire the one of its variant that was.

    Raises
    ------
    OvernightError
        Another run has closed this one: the lock was lost with its connection.
    """
    _still_open(connection, run, State.BUILDING, State.BUILT)
    for run_id in _live(connection, run):
        move(connection, run_id, State.RETIRED, now, who, f"{run.run_id} went live")
    move(connection, run.run_id, State.LIVE, now, who, reason, **values)


def refuse(
    connection: sa.Connection, run: Run, now: datetime, who: str, reason: str, manifest: dict[str, Any]
) -> None:
    """Close a run that the gate keeps from going live.

    Raises
    ------
    OvernightError
        Another run has closed this one: the lock was lost with its connection.
    """
    _still_open(connection, run, State.BUILT)
    values = {"cutoff": manifest["cutoff"], "manifest": manifest}
    move(connection, run.run_id, State.REFUSED, now, who, reason, **values)


def agree(
    connection: sa.Connection, run: Run, now: datetime, who: str, manifest: dict[str, Any] | None = None
) -> bool:
    """Make the ledger say of the run that serves that it is live; tell whether the ledger knows it.

    They differ where a switch died between its SET and its commit. Then the
    run that is live by the ledger was retired by a newer one, or rolled back
    to an older one.
    """
    state = state_of(connection, run)
    if state is None:
        return False
    if state == State.LIVE:
        return True
    why = "serves already: the switch to it died before the ledger was told"
    for run_id in _live(connection, run):
        over = State.ROLLED_BACK if run_id > run.run_id else State.RETIRED
        move(connection, run_id, over, now, who, f"{run.run_id} {why}")
    told = {"manifest": manifest, "cutoff": manifest.get("cutoff")} if manifest else {}
    move(connection, run.run_id, State.LIVE, now, who, why, **told)
    return True


def roll_back(connection: sa.Connection, bad: Run, good: str, now: datetime, who: str, reason: str) -> None:
    """Bring an earlier run live again, and close the one that was, never to be chosen again."""
    for run_id in {bad.run_id, *_live(connection, bad)} - {good}:
        move(connection, run_id, State.ROLLED_BACK, now, who, f"back to {good}: {reason}")
    move(connection, good, State.LIVE, now, who, f"rolled back from {bad.run_id}: {reason}")


def to_go_back_to(connection: sa.Connection, run: Run) -> list[str]:
    """Return the runs of its variant that were live before and are not removed, newest first."""
    query = sa.select(runs.c.run_id).where(
        _same_variant(run), runs.c.state == State.RETIRED, runs.c.removed_at.is_(None)
    )
    return list(connection.scalars(query.order_by(runs.c.run_id.desc())))


def state_of(connection: sa.Connection, run: Run) -> State | None:
    """Return a run's state; None if it is not of this ledger, or of another variant or prefix."""
    query = sa.select(runs.c.state).where(_same_variant(run), runs.c.run_id == run.run_id)
    found = connection.scalar(query.with_for_update())
    return None if found is None else State(found)


def _live(connection: sa.Connection, run: Run) -> list[str]:
    """Return the runs of its variant, itself left out, that the ledger calls live."""
    query = sa.select(runs.c.run_id).where(
        _same_variant(run), runs.c.state == State.LIVE, runs.c.run_id != run.run_id
    )
    return list(connection.scalars(query))


def _same_variant(run: Run) -> sa.ColumnElement[bool]:
    return sa.and_(runs.c.variant == run.variant, runs.c.key_prefix == run.key_prefix)


def _still_open(connection: sa.Connection, run: Run, *states: State) -> None:
    state = state_of(connection, run)
    if state not in states:
        raise OvernightError(
            f"{run.run_id} is {state}, closed by another run when Postgres was lost; run again"
        )


def standing(connection: sa.Connection, key_prefix: str) -> list[Standing]:
    """Return how every run under a prefix stands whose keys are not removed, newest first."""
    since = sa.select(sa.func.max(changes.c.at)).where(changes.c.run_id == runs.c.run_id).scalar_subquery()
    query = (
        sa.select(runs.c.run_id, runs.c.variant, runs.c.state, since.label("since"))
        .where(runs.c.key_prefix == key_prefix, runs.c.removed_at.is_(None))
        .order_by(runs.c.run_id.desc())
    )
    return [
        Standing(row.run_id, row.variant, State(row.state), row.since) for row in connection.execute(query)
    ]


def mark_removed(connection: sa.Connection, run_ids: Iterable[str], now: datetime) -> None:
    """Enter that runs are being removed: from now on nothing goes back to them."""
    chosen = sa.and_(runs.c.run_id.in_(list(run_ids)), runs.c.removed_at.is_(None))
    connection.execute(sa.update(runs).where(chosen).values(removed_at=now))


def removed(engine: sa.Engine, key_prefix: str) -> set[str]:
    """Return every run under a prefix whose keys and model are being removed, or gone."""
    query = sa.select(runs.c.run_id).where(runs.c.key_prefix == key_prefix, runs.c.removed_at.is_not(None))
    with engine.connect() as connection:
        return set(connection.scalars(query))


def unfinished(connection: sa.Connection, key_prefix: str) -> list[Run]:
    """Return the runs that say they are being built: under the lock, those that died."""
    query = sa.select(runs.c.run_id, runs.c.variant).where(
        runs.c.key_prefix == key_prefix, runs.c.state.in_([State.BUILDING, State.BUILT])
    )
    return [Run(row.run_id, row.variant, key_prefix) for row in connection.execute(query)]


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


def amend_manifest(engine: sa.Engine, run_id: str, fields: dict[str, Any]) -> None:
    """Put fields into the manifest that the ledger keeps of a run."""
    with engine.begin() as connection:
        query = sa.select(runs.c.manifest).where(runs.c.run_id == run_id).with_for_update()
        manifest = connection.scalar(query)
        if manifest is not None:
            changed = sa.update(runs).where(runs.c.run_id == run_id).values(manifest=manifest | fields)
            connection.execute(changed)


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
