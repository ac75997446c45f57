"""Freshness of what is served: when runs went live (ledger), and which runs are live (Redis)."""

from __future__ import annotations

import socket
from datetime import datetime
from typing import Any

import redis
import sqlalchemy as sa

from batch.redis_client import live_run_ids
from batch.runs.ledger import State
from batch.runs.tables import changes, has_table, runs
from contract.keys import Keys
from contract.manifest import Manifest

PUBLISHED = (State.LIVE, State.RETIRED, State.ROLLED_BACK)


def latest_live(engine: sa.Engine, key_prefix: str) -> datetime | None:
    """Return when a run last went live for the first time; a rollback does not count.

    If no run has ever been live, return when the first one started; None if there is no run or no ledger.
    """
    first_live = (
        sa.select(sa.func.min(changes.c.at).label("at"))
        .join(runs, runs.c.run_id == changes.c.run_id)
        .where(runs.c.key_prefix == key_prefix, changes.c.state == State.LIVE)
        .group_by(changes.c.run_id)
        .subquery()
    )
    first_start = sa.select(sa.func.min(runs.c.started_at)).where(runs.c.key_prefix == key_prefix)
    with engine.connect() as connection:
        if not has_table(connection, changes):
            return None
        newest: datetime | None = connection.scalar(sa.select(sa.func.max(first_live.c.at)))
        return newest or connection.scalar(first_start)


def unpublished(engine: sa.Engine, key_prefix: str, pid: int, began: datetime) -> list[str]:
    """Return the runs that a process of this host started and that are not live, oldest first."""
    acted = runs.c.actor.endswith(f"@{socket.gethostname()} pid {pid}", autoescape=True)
    query = (
        sa.select(runs.c.run_id)
        .where(runs.c.key_prefix == key_prefix, runs.c.started_at >= began, acted)
        .where(runs.c.state.not_in(PUBLISHED))
        .order_by(runs.c.started_at)
    )
    with engine.connect() as connection:
        return list(connection.scalars(query))


def live_now(client: redis.Redis, key_prefix: str, now: datetime) -> dict[str, Any]:
    """Return variant -> `{"run_id", "age_seconds"}` of the live runs; the age is None if it is unknown."""
    keys = Keys(key_prefix)
    return {
        variant: {"run_id": run_id, "age_seconds": _age(client.get(keys.manifest(run_id)), now)}
        for variant, run_id in live_run_ids(client, keys).items()
    }


def _age(manifest: str | bytes | None, now: datetime) -> int | None:
    """Return the seconds since a run went live, by its manifest (JSON; missing or broken gives None)."""
    try:
        return Manifest.from_json(manifest).age(now) if manifest else None
    except ValueError:
        return None
