"""Fill the ledger with runs that never were, to see how pages and queries stand many nights."""

from __future__ import annotations

import copy
import math
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from batch.runs.tables import State, changes, runs
from contract.experiment import VARIANTS
from contract.keys import Keys
from contract.run_id import make_run_id
from demo.processes import DemoError

ACTOR = "made up"
STORY = {
    State.RETIRED: (State.BUILDING, State.BUILT, State.LIVE, State.RETIRED),
    State.ROLLED_BACK: (State.BUILDING, State.BUILT, State.LIVE, State.ROLLED_BACK),
    State.REFUSED: (State.BUILDING, State.REFUSED),
    State.FAILED: (State.BUILDING, State.FAILED),
}
REASONS = {State.REFUSED: "popularity: -0.0041 is less than the 0 allowed", State.FAILED: "Redis: it is full"}


def make_up_runs(engine: sa.Engine, keys: Keys, count: int = 500) -> list[str]:
    """Add `count` runs of all variants to the ledger, one of each a night, before the earliest run there is.

    Each is a copy of its variant's newest finished run with other metrics. Most are retired; some were
    refused, rolled back, or failed. Redis and files get nothing.

    Returns
    -------
    list of str
        Their ids, newest first.

    Raises
    ------
    DemoError
        If a variant has no finished run to copy.
    """
    with engine.begin() as connection:
        patterns = {variant: _newest(connection, keys, variant) for variant in VARIANTS}
        earliest: Any = connection.scalar(sa.select(sa.func.min(runs.c.started_at)))
        rows = [
            _copy(patterns[VARIANTS[number % len(VARIANTS)]], number, earliest) for number in range(count)
        ]
        if rows:
            connection.execute(sa.insert(runs), rows)
            connection.execute(sa.insert(changes), [change for row in rows for change in _story(row)])
    return [row["run_id"] for row in rows]


def remove_made_up_runs(engine: sa.Engine) -> None:
    """Remove them from the ledger."""
    made_up = sa.select(runs.c.run_id).where(runs.c.actor == ACTOR)
    with engine.begin() as connection:
        connection.execute(sa.delete(changes).where(changes.c.run_id.in_(made_up)))
        connection.execute(sa.delete(runs).where(runs.c.actor == ACTOR))


def _newest(connection: sa.Connection, keys: Keys, variant: str) -> dict[str, Any]:
    found = connection.execute(
        sa.select(runs)
        .where(runs.c.variant == variant, runs.c.key_prefix == keys.prefix, runs.c.manifest.is_not(None))
        .order_by(runs.c.started_at.desc())
        .limit(1)
    ).first()
    if found is None:
        raise DemoError(f"there is no finished run of {variant} to copy; run a night first")
    return dict(found._mapping)


def _copy(pattern: dict[str, Any], number: int, earliest: datetime) -> dict[str, Any]:
    """Return a row like the pattern's, of the night `number // len(VARIANTS)` nights before the earliest."""
    started_at = earliest - timedelta(days=1 + number // len(VARIANTS), seconds=-(number % len(VARIANTS)))
    state = _state(number)
    finished_at = started_at + timedelta(minutes=5)
    row = pattern | {
        "run_id": make_run_id(started_at, pattern["variant"]), "state": state, "started_at": started_at,
        "finished_at": finished_at, "cutoff": started_at - timedelta(minutes=1), "actor": ACTOR,
        "reason": REASONS.get(state), "removed_at": finished_at, "manifest": None,
    }  # fmt: skip
    if state != State.FAILED:
        manifest = copy.deepcopy(pattern["manifest"])
        manifest |= {"run_id": row["run_id"], "state": str(state), "published_at": finished_at.isoformat()}
        manifest["cutoff"] = row["cutoff"].isoformat()
        _shift_metrics(manifest["metrics"], 0.03 * math.sin(number / 9))
        if state == State.REFUSED:
            manifest["gate"][0] |= {"passed": False, "outcome": "refused", "value": -0.0041}
        row["manifest"] = manifest
    return row


def _state(number: int) -> State:
    if number % 17 == 5:
        return State.REFUSED
    if number % 41 == 11:
        return State.ROLLED_BACK
    return State.FAILED if number % 29 == 7 else State.RETIRED


def _shift_metrics(metrics: dict[str, Any], shift: float) -> None:
    """Add to the metrics of the model, and to the ends of their intervals."""
    model, intervals = metrics.get("model") or {}, (metrics.get("intervals") or {}).get("model") or {}
    for name, value in model.items():
        if isinstance(value, float):
            model[name] = round(value + shift, 6)
    for name, ends in intervals.items():
        intervals[name] = [round(end + shift, 6) for end in ends]


def _story(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the changes of a run's state, a minute each."""
    return [
        {
            "run_id": row["run_id"], "state": state, "at": row["started_at"] + timedelta(minutes=minute),
            "actor": ACTOR, "reason": row["reason"] if state == row["state"] else None,
        }
        for minute, state in enumerate(STORY[row["state"]])
    ]  # fmt: skip
