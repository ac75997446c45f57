"""The split of the users as Postgres records it: the change in force, and those before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import sqlalchemy as sa

from batch.runs.tables import experiments
from contract.experiment import Experiment
from contract.keys import Keys

LOCK = sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
LOCK_TIMEOUT = sa.text("SET LOCAL lock_timeout = '20s'")


@dataclass(frozen=True)
class SplitChange:
    """A change under a key prefix: the split in force from `set_at` on, who set it, and the planned days."""

    experiment: Experiment
    set_at: datetime
    actor: str
    planned_days: int | None = None
    key_prefix: str = Keys().prefix


@contextmanager
def lock_split(engine: sa.Engine, key_prefix: str) -> Iterator[sa.Connection]:
    """Open a transaction and lock the split of a prefix against other changes until it ends."""
    with engine.begin() as connection:
        connection.execute(LOCK_TIMEOUT)
        connection.execute(LOCK, {"name": f"overnight experiment:{key_prefix}"})
        yield connection


def read_changes(
    connection: sa.Connection, key_prefix: str, max_changes: int | None = None
) -> list[SplitChange]:
    """Return the changes under a prefix, newest first: the first is in force; empty if none was recorded."""
    query = (
        sa.select(experiments)
        .where(experiments.c.key_prefix == key_prefix)
        .order_by(experiments.c.set_at.desc())
        .limit(max_changes)
    )
    return [
        SplitChange(
            Experiment.from_fields(row._asdict()), row.set_at, row.actor, row.planned_days, row.key_prefix
        )
        for row in connection.execute(query)
    ]


def read_current_change(connection: sa.Connection, key_prefix: str) -> SplitChange | None:
    """Return the newest change under a prefix; None if there is none."""
    return next(iter(read_changes(connection, key_prefix, max_changes=1)), None)


def record_change(connection: sa.Connection, change: SplitChange) -> SplitChange:
    """Insert a change and return it; call it inside `lock_split`.

    `set_at` is moved after the newest recorded change if clocks disagree.
    """
    before = read_current_change(connection, change.key_prefix)
    if before is not None:
        change = replace(change, set_at=max(change.set_at, before.set_at + timedelta(microseconds=1)))
    row = {"pins": {}} | change.experiment.to_fields()
    row |= {
        "set_at": change.set_at,
        "actor": change.actor,
        "key_prefix": change.key_prefix,
        "planned_days": change.planned_days,
    }
    connection.execute(sa.insert(experiments).values(row))
    return change


def is_same_experiment(one: Experiment, other: Experiment) -> bool:
    """Return whether two splits belong to one experiment: another name or salt starts a new experiment."""
    return (one.name, one.salt) == (other.name, other.salt)


def changes_of_experiment(changes: Sequence[SplitChange]) -> list[SplitChange]:
    """Return the changes of the experiment in force, newest first; the last one started it."""
    found = []
    for change in changes:
        if not is_same_experiment(change.experiment, changes[0].experiment):
            break
        found.append(change)
    return found
