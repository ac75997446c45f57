"""All changes in one order of time: of runs, of the split, of blocked posts, jobs, actions and erasures.

One statement reads the newest of each kind; words that need more than their own row come from a second one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from batch.context import Stores
from batch.runs.tables import (
    blocked_posts,
    changes,
    console_actions,
    console_jobs,
    erasures,
    experiments,
    runs,
)
from console.content.subjects import describe_action, subject_of
from console.job_kinds import REPORT
from console.job_records import LOST, is_lost
from contract.columns import SCHEMA

RUN, SPLIT, BLOCK, UNBLOCK, JOB, ACTION, ERASURE = (
    "run",
    "split",
    "block",
    "unblock",
    "job",
    "action",
    "erasure",
)
KINDS = (RUN, SPLIT, BLOCK, UNBLOCK, JOB, ACTION, ERASURE)
"""Kinds of changes."""

Position = tuple[datetime, str]
NOTHING = sa.cast(sa.null(), sa.Text)
UNKNOWN_OUTCOME = "not known yet: it is still at work, or the console ended meanwhile; look at what changed"

MAX_NAMED = 3
"""Users that a change of the pins names."""

PINS_CHANGED = sa.text(f"""
    SELECT now.set_at,
        ARRAY(SELECT format('user %s pinned to %s', key, value) FROM jsonb_each_text(now.pins)
            WHERE before.pins ->> key IS DISTINCT FROM value ORDER BY key LIMIT :count)
        || ARRAY(SELECT format('user %s unpinned', key) FROM jsonb_object_keys(before.pins) AS key
            WHERE NOT jsonb_exists(now.pins, key) ORDER BY key LIMIT :count) AS moved
    FROM {SCHEMA}.experiments now
    LEFT JOIN LATERAL (
        SELECT pins FROM {SCHEMA}.experiments earlier
        WHERE earlier.key_prefix = now.key_prefix AND earlier.set_at < now.set_at
        ORDER BY earlier.set_at DESC LIMIT 1
    ) before ON true
    WHERE now.key_prefix = :prefix AND now.set_at = ANY(:times)
""")
"""Time of a change of the split -> who was pinned and unpinned."""


@dataclass(frozen=True)
class _Source:
    """Changes of a kind, and the table that they are from, which an older ledger may lack."""

    kind: str
    table: sa.Table
    query: sa.Select[Any]


def list_changes(
    stores: Stores, kind: str | None, before: Position | None, count: int
) -> list[dict[str, Any]]:
    """Return changes, newest first.

    Parameters
    ----------
    kind
        One of KINDS; None for all.
    before
        Time and key of the last change of the page before; None for the first page.

    Returns
    -------
    Rows with `at`, `key`, `kind`, `actor`, `subject`, `what`, `reason`, `outcome`, `action` and `arguments`.
    The subject is the id of the run, post, job or user, or the name of the experiment; None if there is none.
    `action` and `arguments` are those of an action, otherwise None.

    Raises
    ------
    SourceError
        Postgres cannot be read.
    """
    with stores.readable_errors(), stores.engine.connect() as connection:
        existing = set(sa.inspect(connection).get_table_names(schema=SCHEMA))
        pages = [
            _select_page(source.query, before, count)
            for source in _sources(stores.keys.prefix)
            if kind in (None, source.kind) and source.table.name in existing
        ]
        if not pages:
            return []
        union = sa.union_all(*pages).subquery()
        newest = sa.select(union).order_by(union.c.at.desc(), union.c.key.desc()).limit(count)
        rows = [dict(row._mapping) for row in connection.execute(newest)]
        _add_pins(connection, stores.keys.prefix, rows)
    for row in rows:
        if row["kind"] == ACTION:
            found = subject_of(row["arguments"])
            row["subject"] = found[1] if found else SPLIT if row["action"] == SPLIT else None
            row["what"] = describe_action(row["action"], row["arguments"])
        elif row["kind"] == RUN:
            row["what"] = row["what"].replace("_", " ")
    return rows


def _add_pins(connection: sa.Connection, prefix: str, rows: list[dict[str, Any]]) -> None:
    """Add to changes of the split the users who were pinned or unpinned."""
    splits = {row["at"]: row for row in rows if row["kind"] == SPLIT}
    if not splits:
        return
    query = {"prefix": prefix, "times": list(splits), "count": MAX_NAMED + 1}
    for at, moved in connection.execute(PINS_CHANGED, query):
        named = moved if len(moved) <= MAX_NAMED else [*moved[:MAX_NAMED], "and more"]
        splits[at]["what"] = ", ".join([splits[at]["what"], *named])


def _select_page(query: sa.Select[Any], before: Position | None, count: int) -> sa.Select[Any]:
    """Return the newest rows of one source; each source reads at most a page."""
    rows = query.subquery()
    page = sa.select(rows)
    if before is not None:
        last = sa.tuple_(sa.literal(before[0]), sa.literal(before[1]))
        page = page.where(sa.tuple_(rows.c.at, rows.c.key) < last)
    return sa.select(page.order_by(rows.c.at.desc(), rows.c.key.desc()).limit(count).subquery())


def _columns(kind: str, at: Any, actor: Any, subject: Any, what: Any, **more: Any) -> list[Any]:
    """Return the columns of a source; its key tells changes of the same time apart."""
    names = ("reason", "outcome", "own_key", "action", "arguments")
    reason, outcome, own_key, action, arguments = (more.get(name, NOTHING) for name in names)
    key = sa.func.concat_ws(":", sa.literal(kind), sa.func.coalesce(own_key, subject), what)
    return [
        at.label("at"), sa.collate(key, "C").label("key"), sa.literal(kind).label("kind"),
        actor.label("actor"), sa.cast(subject, sa.Text).label("subject"),
        sa.cast(what, sa.Text).label("what"),
        sa.cast(reason, sa.Text).label("reason"), sa.cast(outcome, sa.Text).label("outcome"),
        sa.cast(action, sa.Text).label("action"), sa.cast(arguments, JSONB).label("arguments"),
    ]  # fmt: skip


def _count(number: sa.ColumnElement[int], noun: str) -> sa.ColumnElement[str]:
    """Return `1 user` or `3 users`."""
    return sa.func.concat(number, sa.case((number == 1, f" {noun}"), else_=f" {noun}s"))


def _sources(prefix: str) -> Iterator[_Source]:
    c = changes.c
    query = sa.select(*_columns(RUN, c.at, c.actor, c.run_id, c.state, reason=c.reason))
    query = query.join(runs, runs.c.run_id == c.run_id)
    yield _Source(RUN, changes, query.where(runs.c.key_prefix == prefix))

    e = experiments.c
    pins = sa.func.jsonb_object_keys(e.pins).table_valued("key")
    pinned = sa.select(sa.func.count()).select_from(pins).scalar_subquery()
    what = sa.func.format("%s %% of users in test, %s", e.percent_test, _count(pinned, "pin"))
    # The console keeps the reason behind the actor.
    actor, reason = (sa.func.substring(e.actor, pattern) for pattern in ("^(.*?)(?:: |$)", ": (.*)$"))
    query = sa.select(*_columns(SPLIT, e.set_at, actor, e.name, what, reason=reason))
    yield _Source(SPLIT, experiments, query.where(e.key_prefix == prefix))

    b = blocked_posts.c
    blocked = _columns(BLOCK, b.blocked_at, b.blocked_by, b.post_id, sa.literal("blocked"), reason=b.reason)
    yield _Source(BLOCK, blocked_posts, sa.select(*blocked).where(b.key_prefix == prefix))
    served = sa.literal("served again")
    unblocked = _columns(UNBLOCK, b.unblocked_at, b.unblocked_by, b.post_id, served, reason=b.unblock_reason)
    query = sa.select(*unblocked).where(b.key_prefix == prefix, b.unblocked_at.is_not(None))
    yield _Source(UNBLOCK, blocked_posts, query)

    j = console_jobs.c
    outcome = sa.case((j.ended_at.is_not(None), j.meaning), (is_lost(), LOST), else_="running")
    query = sa.select(
        *_columns(JOB, j.started_at, j.actor, j.job_id, j.kind, reason=j.reason, outcome=outcome)
    )
    yield _Source(JOB, console_jobs, query.where(j.key_prefix == prefix, j.kind != REPORT))

    a = console_actions.c
    more = {
        "reason": a.reason,
        "outcome": sa.func.coalesce(a.outcome, UNKNOWN_OUTCOME),
        "own_key": sa.func.md5(a.token),
        "action": a.action,
        "arguments": a.arguments,
    }
    query = sa.select(*_columns(ACTION, a.at, a.actor, NOTHING, a.action, **more))
    yield _Source(ACTION, console_actions, query.where(a.key_prefix == prefix))

    r = erasures.c
    forgotten, lists = _count(r.users, "user"), _count(r.lists, "list")
    what = sa.func.format("%s forgotten, with %s", forgotten, lists)
    query = sa.select(*_columns(ERASURE, r.at, r.actor, sa.literal("users"), what))
    yield _Source(ERASURE, erasures, query.where(r.key_prefix == prefix))
