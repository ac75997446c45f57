"""The split of the users: its changes in Postgres, and the SQL that assigns users to variants.

The SQL has the rule of `contract.experiment.Experiment.variant_of`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from batch.runs.lock import locked_transaction
from batch.runs.tables import experiments
from contract.errors import SourceError
from contract.experiment import CONTROL, TEST, Experiment, sort_pins
from contract.keys import Keys


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
    with locked_transaction(engine, f"experiment:{key_prefix}") as connection:
        yield connection


def read_changes(
    connection: sa.Connection, key_prefix: str, max_changes: int | None = None
) -> list[SplitChange]:
    """Return the changes under a prefix, newest first: the first is in force; empty if none was recorded.

    Raises
    ------
    SourceError
        A row was changed by hand and is not a split.
    """
    query = (
        sa.select(experiments)
        .where(experiments.c.key_prefix == key_prefix)
        .order_by(experiments.c.set_at.desc())
        .limit(max_changes)
    )
    return [
        SplitChange(_experiment_of(row), row.set_at, row.actor, row.planned_days, row.key_prefix)
        for row in connection.execute(query)
    ]


def _experiment_of(row: sa.Row[Any]) -> Experiment:
    try:
        return Experiment.from_fields(row._asdict())
    except ValueError as error:
        raise SourceError(
            f"{experiments} has a row that is not a split: {error}; serving keeps the split it has; "
            f"correct the row with set_at {row.set_at.isoformat()}"
        ) from None


def read_current_change(connection: sa.Connection, key_prefix: str) -> SplitChange | None:
    """Return the newest change under a prefix; None if there is none."""
    return next(iter(read_changes(connection, key_prefix, max_changes=1)), None)


def read_begin(connection: sa.Connection, change: SplitChange, *, same_percent: bool = False) -> datetime:
    """Return when the experiment of a change began; with `same_percent`, when its percentage was set."""
    split, table = change.experiment, experiments.c
    same = [table.name == split.name, table.salt == split.salt]
    if same_percent:
        same.append(table.percent_test == split.percent_test)
    earlier = sa.and_(table.key_prefix == change.key_prefix, table.set_at < change.set_at)
    other = sa.select(sa.func.max(table.set_at)).where(earlier, sa.not_(sa.and_(*same))).scalar_subquery()
    began = sa.select(sa.func.min(table.set_at)).where(earlier, sa.or_(other.is_(None), table.set_at > other))
    return connection.scalar(began) or change.set_at


def read_history(
    connection: sa.Connection, key_prefix: str, before: datetime | None, count: int
) -> list[dict[str, Any]]:
    """Return up to `count` changes that are older than `before`, newest first, without the pins themselves.

    Returns
    -------
    list of dict
        set_at, name, salt, percent_test, planned_days, pinned (a number) and actor.
    """
    table = experiments.c
    pinned = sa.select(sa.func.count()).select_from(sa.func.jsonb_object_keys(table.pins)).scalar_subquery()
    query = (
        sa.select(
            table.set_at, table.name, table.salt, table.percent_test, table.planned_days,
            pinned.label("pinned"), table.actor,
        )
        .where(table.key_prefix == key_prefix)
        .order_by(table.set_at.desc())
        .limit(count)
    )  # fmt: skip
    if before is not None:
        query = query.where(table.set_at < before)
    return [dict(row) for row in connection.execute(query).mappings()]


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


WEIGHTS = (36, 16, 96, 1)
"""2^96, 2^64, 2^32 and 1, each modulo 100: the weights of the four 32-bit parts of an md5 digest."""

PART_DIGITS = 8
"""Hexadecimal digits of a part."""


def bucket_sql(user_id: str, salt: str) -> str:
    """Return the SQL of a user's bucket, 0 to 99: md5 of the id and the salt as a number, modulo 100.

    Postgres has no 128-bit integer. So each 32-bit part is multiplied by its
    power of two modulo 100 and the products are added; the sum is below 2^40.

    Parameters
    ----------
    user_id, salt
        SQL expressions of an id of any kind and of a text, such as `user_id` and `:salt`.
    """
    digest = f"md5(convert_to({user_id} || {salt}, 'UTF8'))"
    parts = [
        f"('x' || substr({digest}, {1 + index * PART_DIGITS}, {PART_DIGITS}))::bit(32)::bigint * {weight}"
        for index, weight in enumerate(WEIGHTS)
    ]
    return "mod(" + "\n  + ".join(parts) + ", 100)"


def variant_sql(user_id: str, experiment: Experiment) -> str:
    """Return the SQL of a user's variant, including pinned users; `user_id` is an SQL expression."""
    pins = "".join(
        f"WHEN {user_id}::text = {quote_literal(pinned)} THEN '{experiment.pins[pinned]}'\n"
        for pinned in sort_pins(experiment.pins)
    )
    bucket = bucket_sql(user_id, quote_literal(experiment.salt))
    return f"CASE {pins}WHEN {bucket} < {experiment.percent_test}\nTHEN '{TEST}' ELSE '{CONTROL}' END"


def quote_literal(text: str) -> str:
    """Return a text as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"
