"""Change the split of the users in Postgres and in Redis: both, or neither.

Postgres is the source of truth. Redis may be emptied or edited by hand, so
every night and every refresh compares it with Postgres and writes it back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import redis
import sqlalchemy as sa
from redis.exceptions import ResponseError
from sqlalchemy.dialects.postgresql import ARRAY

from batch.context import Stores
from batch.experiment.history import (
    SplitChange,
    changes_of_experiment,
    is_same_experiment,
    lock_split,
    read_changes,
    read_current_change,
    record_change,
    variant_sql,
)
from batch.experiment.period import find_split_period
from batch.runs.tables import experiments
from contract.codec import decode_object, encode_object
from contract.errors import EXIT_USAGE, OvernightError
from contract.experiment import Experiment
from contract.ids import Id
from contract.keys import Keys
from contract.settings import Settings

log = logging.getLogger("batch")

DEFAULT_NAME = "default"

MAX_PINS = 1_000
"""Pins are for testing, and serving reads all of them every second."""


class PinError(OvernightError):
    """Raised when a user cannot be pinned."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class ChangeResult:
    """The change in force before (None if there was none) and now; equal if nothing changed."""

    before: SplitChange | None
    now: SplitChange

    @property
    def changed(self) -> bool:
        """Whether a change was recorded."""
        return self.before != self.now

    @property
    def new_experiment(self) -> bool:
        """Whether a new experiment starts."""
        return self.before is None or not is_same_experiment(self.before.experiment, self.now.experiment)


def change_split(
    stores: Stores,
    now: datetime,
    edit: Callable[[Experiment], Experiment],
    planned_days: int | None = None,
) -> ChangeResult:
    """Apply `edit` to the split in force, or to that of the settings; record it and write it to Redis.

    The planned days stay unless others are given; a new experiment starts
    without any. After an error both stores are as before. The exception: if
    Postgres is lost after Redis was written, the next night or refresh writes
    Redis back.
    """
    with lock_split(stores.engine, stores.keys.prefix) as connection:
        before = _current_or_adopted(connection, stores, now)
        result = _make_change(stores, before, now, edit, planned_days)
        if result.changed:
            result = replace(result, now=record_change(connection, result.now))
        write_split(stores.redis, stores.keys, result.now.experiment)
    return result


def preview_change(
    stores: Stores,
    now: datetime,
    edit: Callable[[Experiment], Experiment],
    planned_days: int | None = None,
) -> ChangeResult:
    """Return what `change_split` would do now; nothing is written."""
    prefix = stores.keys.prefix
    with stores.engine.connect() as connection:
        before = read_current_change(connection, prefix)
    if before is None and (stored := read_split(stores.redis, stores.keys).experiment) is not None:
        before = SplitChange(stored, now, stores.actor, None, prefix)
    return _make_change(stores, before, now, edit, planned_days)


def _make_change(
    stores: Stores,
    before: SplitChange | None,
    now: datetime,
    edit: Callable[[Experiment], Experiment],
    planned_days: int | None,
) -> ChangeResult:
    """Return the change that `edit` makes; `now` is `before` if it makes none."""
    wanted = edit(before.experiment if before else settings_experiment(stores.settings))
    if before and planned_days is None and is_same_experiment(before.experiment, wanted):
        planned_days = before.planned_days
    if before and (before.experiment, before.planned_days) == (wanted, planned_days):
        return ChangeResult(before, before)
    return ChangeResult(before, SplitChange(wanted, now, stores.actor, planned_days, stores.keys.prefix))


def write_back(stores: Stores, now: datetime) -> None:
    """Write the recorded split to Redis if it holds another one.

    If none is recorded, the one in Redis is recorded, or else that of the settings.
    """
    with lock_split(stores.engine, stores.keys.prefix) as connection:
        current = _current_or_adopted(connection, stores, now)
        if current is None:
            current = _record(
                connection, stores, settings_experiment(stores.settings), now, "from the settings"
            )
        stored = read_split(stores.redis, stores.keys)
        if stored.experiment == current.experiment:
            return
        if stored != StoredSplit(None):
            log.warning(
                "%s held %s, which `experiment set` did not write; written back: %s",
                stores.keys.experiment,
                stored.describe(),
                describe_split(current.experiment),
            )
        write_split(stores.redis, stores.keys, current.experiment)


def settings_experiment(settings: Settings) -> Experiment:
    """Return the experiment that the settings start with."""
    return Experiment(DEFAULT_NAME, settings.experiment.salt, settings.experiment.percent_test)


def _current_or_adopted(connection: sa.Connection, stores: Stores, now: datetime) -> SplitChange | None:
    """Return the recorded split; if there is none, record the one in Redis; None if that is missing too."""
    current = read_current_change(connection, stores.keys.prefix)
    stored = None if current else read_split(stores.redis, stores.keys).experiment
    return current if stored is None else _record(connection, stores, stored, now, "found in Redis")


def _record(
    connection: sa.Connection, stores: Stores, experiment: Experiment, now: datetime, origin: str
) -> SplitChange:
    actor = f"{stores.actor}, {origin}"
    return record_change(connection, SplitChange(experiment, now, actor, None, stores.keys.prefix))


def edit_split(
    experiment: Experiment,
    *,
    name: str | None = None,
    salt: str | None = None,
    percent_test: int | None = None,
) -> Experiment:
    """Return the split with the given values replaced; None keeps a value, and pins stay."""
    return replace(
        experiment,
        name=experiment.name if name is None else name,
        salt=experiment.salt if salt is None else salt,
        percent_test=experiment.percent_test if percent_test is None else percent_test,
    )


def pin_user(experiment: Experiment, user_id: Id, variant: str) -> Experiment:
    """Return the split with a user pinned to a variant.

    Raises
    ------
    PinError
        `MAX_PINS` users are pinned already.
    """
    pins = {**experiment.pins, str(user_id): variant}
    if len(pins) > MAX_PINS:
        raise PinError(
            f"{MAX_PINS} users are pinned, the maximum; nothing was changed; "
            "unpin one first: `experiment unpin USER`"
        )
    return replace(experiment, pins=pins)


def unpin_user(experiment: Experiment, user_id: Id) -> Experiment:
    """Return the split without a user's pin, if there is one."""
    pins = {user: variant for user, variant in experiment.pins.items() if user != str(user_id)}
    return replace(experiment, pins=pins)


def forget_pins(stores: Stores, user_ids: Collection[Id], *, dry_run: bool) -> int:
    """Remove users from the pins of every recorded split and of the one in Redis; return the users found.

    A dry run only counts them.
    """
    names = sa.cast([str(user_id) for user_id in user_ids], ARRAY(sa.Text))
    remaining = experiments.c.pins.op("-")(names)
    with lock_split(stores.engine, stores.keys.prefix) as connection:
        pinned = sa.func.jsonb_object_keys(experiments.c.pins).label("user_id")
        each = sa.select(pinned).subquery()
        found = sa.select(sa.func.count(each.c.user_id.distinct())).where(each.c.user_id == sa.any_(names))
        count = int(connection.scalar(found) or 0)
        if dry_run:
            return count
        connection.execute(
            sa.update(experiments).where(experiments.c.pins != remaining).values(pins=remaining)
        )
        stored = read_split(stores.redis, stores.keys).experiment
        forgotten = {str(user_id) for user_id in user_ids}
        if stored is not None and not stored.pins.keys().isdisjoint(forgotten):
            pins = {user: variant for user, variant in stored.pins.items() if user not in forgotten}
            write_split(stores.redis, stores.keys, replace(stored, pins=pins))
        return count


@dataclass(frozen=True)
class StoredSplit:
    """The value of the experiment key: a split, None if it is missing, or why it cannot be read."""

    experiment: Experiment | None
    error: str | None = None

    def describe(self) -> str:
        """Return what the key holds in a few words."""
        if self.experiment is not None:
            return describe_split(self.experiment)
        return "nothing" if self.error is None else f"a value that cannot be read ({self.error})"


def read_split(client: redis.Redis, keys: Keys) -> StoredSplit:
    """Read the experiment key; a broken value is returned, not raised."""
    try:
        stored = client.get(keys.experiment)
        return StoredSplit(None if stored is None else Experiment.from_fields(decode_object(str(stored))))
    except ValueError as error:
        return StoredSplit(None, str(error))
    except ResponseError as error:
        if not str(error).startswith("WRONGTYPE"):
            raise
        return StoredSplit(None, "the key is not a string")


def write_split(client: redis.Redis, keys: Keys, experiment: Experiment) -> None:
    """Write the experiment key; serving reads it within OVERNIGHT_STATE_REFRESH_SECONDS."""
    client.set(keys.experiment, encode_object(experiment.to_fields()))


def describe_split(experiment: Experiment) -> str:
    """Return a split in a few words."""
    pins = f", {len(experiment.pins)} pinned" if experiment.pins else ""
    return f"{experiment.name}: {experiment.percent_test} % of users in test, salt {experiment.salt!r}{pins}"


def read_status(stores: Stores) -> dict[str, Any]:
    """Return the split in force, the value in Redis, and every change, newest first.

    The keys are the fields of `experiment show --json`.
    """
    with stores.engine.connect() as connection:
        changes = read_changes(connection, stores.keys.prefix)
    stored = read_split(stores.redis, stores.keys)
    current = changes[0] if changes else None
    return {
        "in_force": _fields(current) if current else None,
        "began_at": changes_of_experiment(changes)[-1].set_at if changes else None,
        "planned_end": find_split_period(changes, None).planned_end if changes else None,
        "sql": variant_sql("user_id", current.experiment) if current else None,
        "redis": {
            "agrees": current is not None and stored.experiment == current.experiment,
            "experiment": stored.experiment.to_fields() if stored.experiment else None,
            "told": stored.describe(),
        },
        "history": [_fields(change) for change in changes],
    }


def _fields(change: SplitChange) -> dict[str, Any]:
    fields: dict[str, Any] = {"pins": {}} | change.experiment.to_fields()
    return fields | {
        "planned_days": change.planned_days,
        "set_at": change.set_at,
        "actor": change.actor,
    }
