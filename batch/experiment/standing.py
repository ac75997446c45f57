"""The split in force, every change of it, and what Redis makes of it, as one record."""

from __future__ import annotations

from typing import Any

import redis
import sqlalchemy as sa

from batch.experiment import in_redis, recorded
from batch.experiment.assignment import variant_sql
from batch.experiment.period import find_split
from batch.experiment.recorded import Recorded
from contract.keys import Keys
from contract.settings import Settings


def standing(engine: sa.Engine, client: redis.Redis, settings: Settings) -> dict[str, Any]:
    """Return the split in force, what Redis has, and every change, newest first."""
    keys = Keys(settings.key_prefix)
    with engine.connect() as connection:
        changes = recorded.history(connection, keys.prefix)
    found = in_redis.read(client, keys)
    current = changes[0] if changes else None
    return {
        "in_force": _fields(current) if current else None,
        "began_at": recorded.of_one_experiment(changes)[-1].set_at if changes else None,
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
