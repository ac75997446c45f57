"""The run ledger in Postgres: every run, its state, and who changed it, when and why."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from batch.context import Stores
from batch.runs.lock import locked_transaction
from batch.runs.tables import State, changes, create, has_table, runs, schema_version
from contract.errors import OvernightError
from contract.ids import IdKind
from contract.keys import Keys
from contract.manifest import Manifest
from contract.run_id import make_run_id

__all__ = [
    "Change", "Run", "RunStatus", "State", "actor", "amend_manifest", "create", "find", "is_known",
    "kept_runs", "latest_start", "live_period", "make_live", "mark_removed", "newest", "other_runs",
    "reconcile", "record_built", "refuse", "removed_runs", "roll_back", "rollback_candidates",
    "run_statuses", "runs", "schema_version", "set_state", "start", "state_of", "switch_lock",
    "unfinished_runs",
]  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One variant built once."""

    run_id: str
    variant: str
    key_prefix: str = Keys().prefix


@dataclass(frozen=True)
class Change:
    """Who changes a run's state, when and why."""

    at: datetime
    actor: str
    reason: str | None = None


@dataclass(frozen=True)
class RunStatus:
    """The state of a run, and since when it has it."""

    run_id: str
    variant: str
    state: State
    since: datetime


def actor(command: str) -> str:
    """Return who acts: the command, the user, the host and the process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{command} by {user}@{socket.gethostname()} pid {os.getpid()}"


def start(stores: Stores, variant: str, now: datetime) -> Run:
    """Add a new run, named by its start in UTC and its variant.

    If the name is taken, the run gets the next free second.
    """
    named_at, prefix = now, stores.keys.prefix
    with stores.engine.begin() as connection:
        while True:
            run = Run(make_run_id(named_at, variant), variant, prefix)
            row = {
                "run_id": run.run_id,
                "variant": variant,
                "key_prefix": prefix,
                "state": State.BUILDING,
                "started_at": now,
                "actor": stores.actor,
            }
            inserted = connection.execute(insert(runs).values(row).on_conflict_do_nothing())
            if inserted.rowcount == 1:
                _record_change(connection, run.run_id, State.BUILDING, Change(now, stores.actor))
                return run
            named_at += timedelta(seconds=1)


def set_state(connection: sa.Connection, run_id: str, state: State, change: Change, **values: Any) -> None:
    """Set a run's state and record the change; `values` are further columns to set."""
    finished = {"finished_at": change.at} if state in (State.FAILED, State.REFUSED, State.LIVE) else {}
    columns = {"state": state, "reason": change.reason} | finished | values
    connection.execute(sa.update(runs).where(runs.c.run_id == run_id).values(columns))
    _record_change(connection, run_id, state, change)


@contextmanager
def switch_lock(engine: sa.Engine, key_prefix: str) -> Iterator[sa.Connection]:
    """Open the only transaction under the prefix that may change the live run or remove runs.

    It is short and never open while a run is built, so a rollback need not wait for a night.
    """
    with locked_transaction(engine, f"switch:{key_prefix}") as connection:
        yield connection


def record_built(stores: Stores, run: Run, manifest: Manifest) -> None:
    """Record that a run is written and checked, and can go live.

    Raises
    ------
    OvernightError
        Another run has closed this one, because the lock was lost with its connection.
    """
    with stores.engine.begin() as connection:
        _check_open(connection, run, State.BUILDING)
        change = Change(datetime.now(UTC), stores.actor)
        set_state(connection, run.run_id, State.BUILT, change, manifest=manifest.to_record())


def make_live(connection: sa.Connection, run: Run, change: Change, manifest: Manifest | None = None) -> None:
    """Make a run live and retire the live run of its variant.

    Raises
    ------
    OvernightError
        Another run has closed this one, because the lock was lost with its connection.
    """
    _check_open(connection, run, State.BUILDING, State.BUILT)
    for run_id in _live(connection, run):
        retired = replace(change, reason=f"{run.run_id} went live")
        set_state(connection, run_id, State.RETIRED, retired)
    set_state(connection, run.run_id, State.LIVE, change, **_manifest_columns(manifest))


def refuse(connection: sa.Connection, run: Run, change: Change, manifest: Manifest) -> None:
    """Close a run that the gate refuses.

    Raises
    ------
    OvernightError
        Another run has closed this one, because the lock was lost with its connection.
    """
    _check_open(connection, run, State.BUILT)
    set_state(connection, run.run_id, State.REFUSED, change, **_manifest_columns(manifest))


def reconcile(connection: sa.Connection, run: Run, change: Change, manifest: Manifest | None = None) -> bool:
    """Record that the run that Redis serves is live; return whether the ledger knows the run.

    Redis and the ledger differ if a switch died between its SET and its commit. The run that is live
    in the ledger was then retired by a newer run, or rolled back to an older one.
    """
    state = state_of(connection, run)
    if state is None:
        return False
    if state == State.LIVE:
        return True
    change = replace(
        change, reason="serves already: the switch to it died before it was recorded in the ledger"
    )
    for run_id in _live(connection, run):
        closed = State.ROLLED_BACK if run_id > run.run_id else State.RETIRED
        set_state(connection, run_id, closed, replace(change, reason=f"{run.run_id} {change.reason}"))
    set_state(connection, run.run_id, State.LIVE, change, **_manifest_columns(manifest))
    return True


def roll_back(connection: sa.Connection, bad: Run, good: str, change: Change) -> None:
    """Make an earlier run live again, and close the live run so that it is never chosen again."""
    for run_id in {bad.run_id, *_live(connection, bad)} - {good}:
        closed = replace(change, reason=f"back to {good}: {change.reason}")
        set_state(connection, run_id, State.ROLLED_BACK, closed)
    again = replace(change, reason=f"rolled back from {bad.run_id}: {change.reason}")
    set_state(connection, good, State.LIVE, again)


def rollback_candidates(connection: sa.Connection, run: Run) -> list[str]:
    """Return the runs of its variant that were live before and are not removed, newest first.

    A run that is still recorded as live although a newer one serves counts too, see `reconcile`.
    """
    passed = sa.and_(runs.c.state == State.LIVE, runs.c.run_id < run.run_id)
    query = sa.select(runs.c.run_id).where(
        _same_variant(run),
        sa.or_(runs.c.state == State.RETIRED, passed),
        runs.c.run_id != run.run_id,
        runs.c.removed_at.is_(None),
    )
    return list(connection.scalars(query.order_by(runs.c.run_id.desc())))


def is_known(connection: sa.Connection, run: Run) -> bool:
    """Return whether the ledger has a run of this id, variant and prefix."""
    query = sa.select(runs.c.run_id).where(_same_variant(run), runs.c.run_id == run.run_id)
    return connection.scalar(query) is not None


def live_period(connection: sa.Connection, run_id: str) -> tuple[datetime | None, datetime | None]:
    """Return since when and until when a run was last live; None where the ledger does not say."""

    def last(*states: State) -> datetime | None:
        of_run = changes.c.run_id == run_id, changes.c.state.in_(states)
        found: datetime | None = connection.scalar(sa.select(sa.func.max(changes.c.at)).where(*of_run))
        return found

    return last(State.LIVE), last(State.RETIRED, State.ROLLED_BACK)


def state_of(connection: sa.Connection, run: Run) -> State | None:
    """Return a run's state; None if the ledger has no such run of this variant and prefix."""
    query = sa.select(runs.c.state).where(_same_variant(run), runs.c.run_id == run.run_id)
    found = connection.scalar(query.with_for_update())
    return None if found is None else State(found)


def _live(connection: sa.Connection, run: Run) -> list[str]:
    """Return the other runs of its variant that are live in the ledger."""
    query = sa.select(runs.c.run_id).where(
        _same_variant(run), runs.c.state == State.LIVE, runs.c.run_id != run.run_id
    )
    return list(connection.scalars(query))


def _same_variant(run: Run) -> sa.ColumnElement[bool]:
    return sa.and_(runs.c.variant == run.variant, runs.c.key_prefix == run.key_prefix)


def _check_open(connection: sa.Connection, run: Run, *states: State) -> None:
    state = state_of(connection, run)
    if state not in states:
        raise OvernightError(
            f"{run.run_id} is {state}, closed by another run when Postgres was lost; run again"
        )


def run_statuses(connection: sa.Connection, key_prefix: str) -> list[RunStatus]:
    """Return the status of every run under a prefix whose keys are not removed, newest first."""
    since = sa.select(sa.func.max(changes.c.at)).where(changes.c.run_id == runs.c.run_id).scalar_subquery()
    query = (
        sa.select(runs.c.run_id, runs.c.variant, runs.c.state, since.label("since"))
        .where(runs.c.key_prefix == key_prefix, runs.c.removed_at.is_(None))
        .order_by(runs.c.run_id.desc())
    )
    return [
        RunStatus(row.run_id, row.variant, State(row.state), row.since) for row in connection.execute(query)
    ]


def kept_runs(engine: sa.Engine, key_prefix: str, count: int) -> list[sa.Row[Any]]:
    """Return `run_id`, `variant` and `state` of the newest runs under a prefix whose lists Redis has."""
    with_lists = State.LIVE, State.RETIRED, State.ROLLED_BACK, State.REFUSED
    query = (
        sa.select(runs.c.run_id, runs.c.variant, runs.c.state)
        .where(runs.c.key_prefix == key_prefix, runs.c.removed_at.is_(None), runs.c.state.in_(with_lists))
        .order_by(runs.c.run_id.desc())
        .limit(count)
    )
    with engine.connect() as connection:
        return list(connection.execute(query))


def runs_of_other_kinds(connection: sa.Connection, run_ids: Iterable[str], kind: IdKind) -> list[str]:
    """Return those of the runs whose users' ids are of another kind, newest first.

    A run that is being built, and one that died then, has no manifest and is not among them.
    """
    of_users = sa.func.coalesce(runs.c.manifest["ids"]["users"].astext, IdKind.NUMBER)
    chosen = runs.c.run_id.in_(list(run_ids)), sa.func.jsonb_typeof(runs.c.manifest) == "object"
    query = sa.select(runs.c.run_id).where(*chosen, of_users != kind).order_by(runs.c.run_id.desc())
    return list(connection.scalars(query))


def mark_removed(connection: sa.Connection, run_ids: Iterable[str], now: datetime) -> None:
    """Record that runs are being removed: from now on no rollback chooses them."""
    chosen = sa.and_(runs.c.run_id.in_(list(run_ids)), runs.c.removed_at.is_(None))
    connection.execute(sa.update(runs).where(chosen).values(removed_at=now))


def removed_runs(engine: sa.Engine, key_prefix: str) -> set[str]:
    """Return the runs under a prefix whose keys and model are removed or being removed."""
    query = sa.select(runs.c.run_id).where(runs.c.key_prefix == key_prefix, runs.c.removed_at.is_not(None))
    with engine.connect() as connection:
        return set(connection.scalars(query))


def unfinished_runs(connection: sa.Connection, key_prefix: str) -> list[Run]:
    """Return the runs that are recorded as being built; under the run lock these have died."""
    query = sa.select(runs.c.run_id, runs.c.variant).where(
        runs.c.key_prefix == key_prefix, runs.c.state.in_([State.BUILDING, State.BUILT])
    )
    return [Run(row.run_id, row.variant, key_prefix) for row in connection.execute(query)]


def other_runs(variant: str, key_prefix: str, run_id: str) -> sa.Select[Any]:
    """Return a query of all runs of a variant under a key prefix except one."""
    ours = runs.c.variant == variant, runs.c.key_prefix == key_prefix
    return sa.select(runs.c.run_id).where(*ours, runs.c.run_id != run_id)


def latest_start(engine: sa.Engine) -> datetime | None:
    """Return when the newest run started; None if there is no run or no ledger."""
    with engine.connect() as connection:
        if not has_table(connection, runs):
            return None
        found: datetime | None = connection.scalar(sa.select(sa.func.max(runs.c.started_at)))
        return found


def newest(engine: sa.Engine, count: int) -> list[sa.Row[Any]]:
    """Return the newest runs, newest first."""
    with engine.connect() as connection:
        return list(connection.execute(sa.select(runs).order_by(runs.c.started_at.desc()).limit(count)))


def amend_manifest(engine: sa.Engine, run_id: str, fields: dict[str, Any]) -> None:
    """Add fields to the manifest that the ledger keeps of a run."""
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


def _manifest_columns(manifest: Manifest | None) -> dict[str, Any]:
    return {} if manifest is None else {"manifest": manifest.to_record(), "cutoff": manifest.cutoff}


def _record_change(connection: sa.Connection, run_id: str, state: State, change: Change) -> None:
    row = {
        "run_id": run_id,
        "state": state,
        "at": change.at,
        "actor": change.actor,
        "reason": change.reason,
    }
    connection.execute(sa.insert(changes).values(row))
