"""The split of the users as Postgres has it: the change in force, and those before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from batch.runs.tables import experiments
from contract.experiment import Experiment
from contract.keys import Keys

ONE_AT_A_TIME = sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
PATIENCE = sa.text("SET LOCAL lock_timeout = '20s'")


@dataclass(frozen=True)
class Recorded:
    """One change under a prefix: what was in force from `set_at` on, who made it so, and the days planned."""

    experiment: Experiment
    set_at: datetime
    actor: str
    planned_days: int | None = None
    key_prefix: str = Keys().prefix


@contextmanager
def changing(engine: sa.Engine, key_prefix: str) -> Iterator[sa.Connection]:
    """Open a transaction beside which no other one changes the split of a prefix."""
    with engine.begin() as connection:
        connection.execute(PATIENCE)
        connection.execute(ONE_AT_A_TIME, {"name": f"overnight experiment:{key_prefix}"})
        yield connection


def history(connection: sa.Connection, key_prefix: str, most: int | None = None) -> list[Recorded]:
    """Return the changes under a prefix, newest first: the first is in force; none if it was never set."""
    query = (
        sa.select(experiments)
        .where(experiments.c.key_prefix == key_prefix)
        .order_by(experiments.c.set_at.desc())
        .limit(most)
    )
    return [
        Recorded(
            Experiment.from_fields(row._asdict()), row.set_at, row.actor, row.planned_days, row.key_prefix
        )
        for row in connection.execute(query)
    ]


def in_force(connection: sa.Connection, key_prefix: str) -> Recorded | None:
    """Return the newest change under a prefix; None if there is none."""
    return next(iter(history(connection, key_prefix, most=1)), None)


def record(
    connection: sa.Connection,
    key_prefix: str,
    experiment: Experiment,
    now: datetime,
    actor: str,
    planned_days: int | None = None,
) -> Recorded:
    """Enter a change, later than all before it even where clocks disagree; call it while `changing`."""
    before = in_force(connection, key_prefix)
    set_at = now if before is None else max(now, before.set_at + timedelta(microseconds=1))
    fields = {"pins": {}} | experiment.to_fields()
    row = fields | {"set_at": set_at, "actor": actor, "key_prefix": key_prefix, "planned_days": planned_days}
    connection.execute(sa.insert(experiments).values(row))
    return Recorded(experiment, set_at, actor, planned_days, key_prefix)


def same_experiment(one: Experiment, other: Experiment) -> bool:
    """Tell whether two splits belong to one experiment: another name or salt begins another."""
    return (one.name, one.salt) == (other.name, other.salt)


def of_one_experiment(changes: Sequence[Recorded]) -> list[Recorded]:
    """Return the changes of the experiment in force, newest first: its last one is when it began."""
    found = []
    for change in changes:
        if not same_experiment(change.experiment, changes[0].experiment):
            break
        found.append(change)
    return found
