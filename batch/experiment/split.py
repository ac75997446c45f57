"""Changes the split of the users, in Postgres and in Redis: both, or neither.

Postgres is the truth. Redis may be emptied or set by hand, so every night and
every refresh holds it against Postgres and writes it back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import redis
import sqlalchemy as sa
from redis.exceptions import ResponseError

from batch.experiment import history, split
from batch.experiment.assignment import variant_sql
from batch.experiment.history import Recorded
from batch.experiment.period import find_split
from contract.codec import decode_object, encode_object
from contract.errors import EXIT_USAGE, OvernightError
from contract.experiment import Experiment
from contract.keys import Keys
from contract.settings import Settings

log = logging.getLogger("batch")

DEFAULT_NAME = "default"


@dataclass(frozen=True)
class Changed:
    """What was in force before, None if nothing was, and what is now; alike where nothing was to change."""

    before: Recorded | None
    now: Recorded

    @property
    def anything(self) -> bool:
        """Whether anything changed."""
        return self.before != self.now

    @property
    def new_experiment(self) -> bool:
        """Whether another experiment begins."""
        return self.before is None or not history.same_experiment(self.before.experiment, self.now.experiment)


def change(
    engine: sa.Engine,
    client: redis.Redis,
    settings: Settings,
    now: datetime,
    actor: str,
    edit: Callable[[Experiment], Experiment],
    planned_days: int | None = None,
) -> Changed:
    """Change the experiment in force, or that of the settings where none is; record it and tell serving.

    The days planned stay unless others are given; another experiment begins without.
    What fails leaves both as they were; but if Postgres is lost after Redis was
    told, the next night or refresh takes that back.
    """
    keys = Keys(settings.stores.key_prefix)
    with history.changing(engine, keys.prefix) as connection:
        before = history.in_force(connection, keys.prefix) or _adopted(connection, client, keys, now, actor)
        wanted = edit(before.experiment if before else of_settings(settings))
        if before and planned_days is None and history.same_experiment(before.experiment, wanted):
            planned_days = before.planned_days
        if before and (before.experiment, before.planned_days) == (wanted, planned_days):
            known = before
        else:
            known = history.record(connection, keys.prefix, wanted, now, actor, planned_days)
        split.write(client, keys, wanted)
    return Changed(before, known)


def write_back(engine: sa.Engine, client: redis.Redis, settings: Settings, now: datetime, actor: str) -> None:
    """Bring Redis to what Postgres has; where that is nothing, begin with what Redis has, or the settings."""
    keys = Keys(settings.stores.key_prefix)
    with history.changing(engine, keys.prefix) as connection:
        known = history.in_force(connection, keys.prefix) or _adopted(connection, client, keys, now, actor)
        if known is None:
            known = history.record(
                connection, keys.prefix, of_settings(settings), now, f"{actor}, from the settings"
            )
        found = split.read(client, keys)
        if found.experiment == known.experiment:
            return
        if found != split.InRedis(None):
            log.warning(
                "%s held %s, which `experiment set` did not put there; written back: %s",
                keys.experiment,
                found.told(),
                split.described(known.experiment),
            )
        split.write(client, keys, known.experiment)


def of_settings(settings: Settings) -> Experiment:
    """Return the experiment to begin with."""
    return Experiment(DEFAULT_NAME, settings.experiment.salt, settings.experiment.percent_test)


def _adopted(
    connection: sa.Connection, client: redis.Redis, keys: Keys, now: datetime, actor: str
) -> Recorded | None:
    """Record what Redis has where Postgres has nothing: it was in force before there was a record."""
    found = split.read(client, keys).experiment
    if found is None:
        return None
    return history.record(connection, keys.prefix, found, now, f"{actor}, found in Redis")


MOST_PINS = 1_000
"""Serving reads them every second, and they are for testing."""


class PinError(OvernightError):
    """Raised when a user cannot be pinned."""

    exit_code = EXIT_USAGE


def edited(now: Experiment, name: str | None, salt: str | None, percent_test: int | None) -> Experiment:
    """Return the split with what is given in place of what was; pins stay."""
    return replace(
        now,
        name=now.name if name is None else name,
        salt=now.salt if salt is None else salt,
        percent_test=now.percent_test if percent_test is None else percent_test,
    )


def pinned(now: Experiment, user_id: int, variant: str) -> Experiment:
    """Return the split with a user pinned to a variant.

    Raises
    ------
    PinError
        So many are pinned already that this is no testing.
    """
    pins = {**now.pins, user_id: variant}
    if len(pins) > MOST_PINS:
        raise PinError(f"{MOST_PINS} users are pinned, which is the most; `experiment unpin USER` makes room")
    return replace(now, pins=pins)


def unpinned(now: Experiment, user_id: int) -> Experiment:
    """Return the split without a user's pin, if there is one."""
    return replace(now, pins={user: variant for user, variant in now.pins.items() if user != user_id})


@dataclass(frozen=True)
class InRedis:
    """What the experiment's key holds: an experiment, nothing, or what is none, as `broken` tells."""

    experiment: Experiment | None
    broken: str | None = None

    def told(self) -> str:
        """Say what it is, in a few words."""
        if self.experiment is not None:
            return described(self.experiment)
        return "nothing" if self.broken is None else f"what is no experiment ({self.broken})"


def read(client: redis.Redis, keys: Keys) -> InRedis:
    """Read the experiment's key, whatever it holds."""
    try:
        stored = client.get(keys.experiment)
        return InRedis(None if stored is None else Experiment.from_fields(decode_object(str(stored))))
    except ValueError as error:
        return InRedis(None, str(error))
    except ResponseError as error:
        if not str(error).startswith("WRONGTYPE"):
            raise
        return InRedis(None, "the key is no string")


def write(client: redis.Redis, keys: Keys, experiment: Experiment) -> None:
    """Write the experiment for serving, which takes it up within about a second."""
    client.set(keys.experiment, encode_object(experiment.to_fields()))


def described(experiment: Experiment) -> str:
    """Say what a split is, in a few words."""
    pins = f", {len(experiment.pins)} pinned" if experiment.pins else ""
    return f"{experiment.name}: {experiment.percent_test} % of users in test, salt {experiment.salt!r}{pins}"


def standing(engine: sa.Engine, client: redis.Redis, settings: Settings) -> dict[str, Any]:
    """Return the split in force, what Redis has, and every change, newest first."""
    keys = Keys(settings.stores.key_prefix)
    with engine.connect() as connection:
        changes = history.history(connection, keys.prefix)
    found = split.read(client, keys)
    current = changes[0] if changes else None
    return {
        "in_force": _fields(current) if current else None,
        "began_at": history.of_one_experiment(changes)[-1].set_at if changes else None,
        "planned_end": find_split(changes, None).planned_end if changes else None,
        "sql": variant_sql("user_id", current.experiment) if current else None,
        "redis": {
            "agrees": current is not None and found.experiment == current.experiment,
            "experiment": found.experiment.to_fields() if found.experiment else None,
            "told": found.told(),
        },
        "history": [_fields(change) for change in changes],
    }


def _fields(change: Recorded) -> dict[str, Any]:
    fields: dict[str, Any] = {"pins": {}} | change.experiment.to_fields()
    return fields | {
        "planned_days": change.planned_days,
        "set_at": change.set_at,
        "actor": change.actor,
    }
