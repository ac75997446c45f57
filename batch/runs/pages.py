"""What pages show of many runs: rows of the ledger with figures that Postgres picks from the manifests.

A manifest has tens of kilobytes. Here Postgres reads each one once and sends single figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from batch.runs.tables import State, changes, experiments, runs, schema_version
from contract.columns import SCHEMA

MAX_REASON = 200
"""Characters of a reason in a row; the run's own page has all of it."""

MAX_EVENTS = 100

FIGURES = sa.text(f"""
SELECT chosen.run_id, chosen.variant, chosen.state, chosen.cutoff, chosen.started_at, chosen.actor,
       left(chosen.reason, {MAX_REASON}) AS reason, chosen.removed_at, manifest.users, manifest.posts,
       manifest.forced,
       coalesce(
           (SELECT sum((stage ->> 'seconds')::float8) FROM jsonb_array_elements(manifest.stages) stage),
           extract(epoch FROM chosen.finished_at - chosen.started_at)::float8
       ) AS seconds,
       (SELECT (rule ->> 'value')::float8 FROM jsonb_array_elements(manifest.gate) rule
        WHERE rule ->> 'rule' = 'coverage') AS coverage,
       (metrics #>> '{{full_catalogue,model,ndcg_at_10}}')::float8 AS ndcg_at_10,
       (metrics #>> '{{full_catalogue,popularity,ndcg_at_10}}')::float8 AS popularity_ndcg_at_10,
       (metrics #>> '{{model,hitrate_at_5}}')::float8 AS hitrate_at_5,
       (metrics #>> '{{intervals,model,hitrate_at_5,0}}')::float8 AS hitrate_at_5_low,
       (metrics #>> '{{intervals,model,hitrate_at_5,1}}')::float8 AS hitrate_at_5_high,
       (metrics #>> '{{popularity,hitrate_at_5}}')::float8 AS popularity_hitrate_at_5,
       (metrics #>> '{{model,roc_auc}}')::float8 AS roc_auc,
       (metrics #>> '{{intervals,model,roc_auc,0}}')::float8 AS roc_auc_low,
       (metrics #>> '{{intervals,model,roc_auc,1}}')::float8 AS roc_auc_high,
       (metrics #>> '{{popularity,roc_auc}}')::float8 AS popularity_roc_auc
FROM (
    SELECT *, CASE WHEN jsonb_typeof(manifest) = 'object' THEN manifest ELSE '{{}}' END AS record
    FROM {SCHEMA}.runs
    WHERE key_prefix = :key_prefix
      AND (:variant = '' OR variant = :variant)
      AND (:state = '' OR state = :state)
      AND (:before = '' OR run_id < :before)
    ORDER BY run_id DESC
    LIMIT :count
) chosen
CROSS JOIN LATERAL jsonb_to_record(chosen.record) AS manifest(
    metrics jsonb, stages jsonb, gate jsonb, users bigint, posts bigint, forced boolean
)
ORDER BY chosen.run_id DESC
""")


def read_page(
    engine: sa.Engine, key_prefix: str, count: int, *, variant: str = "", state: str = "", before: str = ""
) -> list[dict[str, Any]]:
    """Return `count` runs under a prefix, newest first, with their figures.

    Figures are None for a run that ended before its evaluation. `seconds` is the time of its stages.
    HitRate@5 and ROC AUC are of viewed posts, NDCG@10 is of the full catalogue.

    Parameters
    ----------
    variant, state
        Only such runs; empty: all.
    before
        Only runs whose id is less; empty: from the newest on.
    """
    values = {
        "key_prefix": key_prefix, "variant": variant, "state": state, "before": before, "count": count,
    }  # fmt: skip
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(FIGURES, values).mappings()]


@dataclass(frozen=True)
class RunState:
    """A run with its state, its start, and why it has that state."""

    run_id: str
    state: State
    started_at: datetime
    reason: str | None = None


def read_states(connection: sa.Connection, key_prefix: str, variant: str, count: int) -> list[RunState]:
    """Return the newest runs of a variant, newest first."""
    reason = sa.func.left(runs.c.reason, MAX_REASON)
    query = (
        sa.select(runs.c.run_id, runs.c.state, runs.c.started_at, reason)
        .where(runs.c.key_prefix == key_prefix, runs.c.variant == variant)
        .order_by(runs.c.run_id.desc())
        .limit(count)
    )
    return [
        RunState(run_id, State(state), started_at, why)
        for run_id, state, started_at, why in connection.execute(query)
    ]


def read_live_runs(connection: sa.Connection, key_prefix: str) -> dict[str, str]:
    """Return variant -> run that is live in the ledger."""
    live = runs.c.key_prefix == key_prefix, runs.c.state == State.LIVE
    query = sa.select(runs.c.variant, runs.c.run_id).where(*live)
    return {row.variant: row.run_id for row in connection.execute(query)}


def read_live_since(engine: sa.Engine, key_prefix: str) -> dict[str, datetime]:
    """Return run -> when it last went live, of the runs that are live in the ledger.

    After a rollback that is the time of the rollback, not of the run's night.
    """
    query = (
        sa.select(runs.c.run_id, sa.func.max(changes.c.at).label("since"))
        .join(changes, sa.and_(changes.c.run_id == runs.c.run_id, changes.c.state == State.LIVE))
        .where(runs.c.key_prefix == key_prefix, runs.c.state == State.LIVE)
        .group_by(runs.c.run_id)
    )
    if not schema_version(engine):
        return {}
    with engine.connect() as connection:
        return {row.run_id: row.since for row in connection.execute(query)}


def read_events(
    engine: sa.Engine, key_prefix: str, since: datetime, until: datetime
) -> list[tuple[datetime, str]]:
    """Return (time, what happened) of rollbacks and of changes of the split, newest first."""
    rolled_back = (
        sa.select(changes.c.at, changes.c.run_id, sa.func.left(changes.c.reason, MAX_REASON).label("reason"))
        .join(runs, runs.c.run_id == changes.c.run_id)
        .where(runs.c.key_prefix == key_prefix, changes.c.state == State.ROLLED_BACK)
        .where(changes.c.at.between(since, until))
        .order_by(changes.c.at.desc())
        .limit(MAX_EVENTS)
    )
    splits = (
        sa.select(experiments.c.set_at, experiments.c.name, experiments.c.percent_test)
        .where(experiments.c.key_prefix == key_prefix, experiments.c.set_at.between(since, until))
        .order_by(experiments.c.set_at.desc())
        .limit(MAX_EVENTS)
    )
    with engine.connect() as connection:
        events = [
            (row.at, f"{row.run_id} rolled back: {row.reason or 'no reason given'}")
            for row in connection.execute(rolled_back)
        ]
        events += [
            (row.set_at, f"split: {row.percent_test} % of users in test ({row.name})")
            for row in connection.execute(splits)
        ]
    return sorted(events, reverse=True)


def read_left_out(engine: sa.Engine, key_prefix: str, count: int, before: str = "") -> list[dict[str, Any]]:
    """Return `count` runs under a prefix, newest first, with `users`, `posts` and `left_out` of the network.

    `left_out` is reason -> rows of the source; runs that ended before they were built are not among them.

    Parameters
    ----------
    before
        Only runs whose id is less; empty: from the newest on.
    """
    manifest = runs.c.manifest
    columns = (
        runs.c.run_id, runs.c.cutoff, manifest["left_out"].label("left_out"),
        manifest["users_of_network"].as_integer().label("users"),
        manifest["posts"].as_integer().label("posts"),
    )  # fmt: skip
    built = runs.c.key_prefix == key_prefix, sa.func.jsonb_typeof(manifest["left_out"]) == "object"
    query = sa.select(*columns).where(*built)
    if before:
        query = query.where(runs.c.run_id < before)
    with engine.connect() as connection:
        found = connection.execute(query.order_by(runs.c.run_id.desc()).limit(count))
        return [dict(row) for row in found.mappings()]
