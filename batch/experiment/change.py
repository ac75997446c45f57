"""Changes the split of the users, in Postgres and in Redis: both, or neither.

Postgres is the truth. Redis may be emptied or set by hand, so every night and
every refresh holds it against Postgres and writes it back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import redis
import sqlalchemy as sa

from batch.experiment import in_redis, recorded
from batch.experiment.recorded import Recorded
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
        return self.before is None or not recorded.same_experiment(
            self.before.experiment, self.now.experiment
        )


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
    keys = Keys(settings.key_prefix)
    with recorded.changing(engine, keys.prefix) as connection:
        before = recorded.in_force(connection, keys.prefix) or _adopted(connection, client, keys, now, actor)
        wanted = edit(before.experiment if before else of_settings(settings))
        if before and planned_days is None and recorded.same_experiment(before.experiment, wanted):
            planned_days = before.planned_days
        if before and (before.experiment, before.planned_days) == (wanted, planned_days):
            known = before
        else:
            known = recorded.record(connection, keys.prefix, wanted, now, actor, planned_days)
        in_redis.write(client, keys, wanted)
    return Changed(before, known)


def write_back(engine: sa.Engine, client: redis.Redis, settings: Settings, now: datetime, actor: str) -> None:
    """Bring Redis to what Postgres has; where that is nothing, begin with what Redis has, or the settings."""
    keys = Keys(settings.key_prefix)
    with recorded.changing(engine, keys.prefix) as connection:
        known = recorded.in_force(connection, keys.prefix) or _adopted(connection, client, keys, now, actor)
        if known is None:
            known = recorded.record(
                connection, keys.prefix, of_settings(settings), now, f"{actor}, from the settings"
            )
        found = in_redis.read(client, keys)
        if found.experiment == known.experiment:
            return
        if found != in_redis.InRedis(None):
            log.warning(
                "%s held %s, which `experiment set` did not put there; written back: %s",
                keys.experiment,
                found.told(),
                in_redis.described(known.experiment),
            )
        in_redis.write(client, keys, known.experiment)


def of_settings(settings: Settings) -> Experiment:
    """Return the experiment to begin with."""
    return Experiment(DEFAULT_NAME, settings.experiment_salt, settings.percent_test)


def _adopted(
    connection: sa.Connection, client: redis.Redis, keys: Keys, now: datetime, actor: str
) -> Recorded | None:
    """Record what Redis has where Postgres has nothing: it was in force before there was a record."""
    found = in_redis.read(client, keys).experiment
    if found is None:
        return None
    return recorded.record(connection, keys.prefix, found, now, f"{actor}, found in Redis")
