"""All checks in order; a store that cannot be reached is a finding, and the other checks go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from batch import postgres, redis_client
from batch.context import Stores
from batch.doctor import live_runs, postgres_checks, redis_checks, small_keys
from batch.doctor.finding import (
    Finding,
    Status,
    check_postgres_clock,
    check_redis_clock,
    fail_from_error,
    warn,
)
from batch.doctor.live_runs import LiveRuns
from batch.doctor.postgres_checks import (
    LedgerRow,
    check_time_index,
    read_ledger_rows,
    read_recorded_blocks,
    read_recorded_split,
)
from batch.doctor.redis_checks import RunKeys, count_keys
from batch.inspection.lists import id_kinds_of, published_at, read_manifest
from batch.loading.schema import Columns, check_views
from batch.redis_client import live_run_ids
from batch.redis_memory import nodes_of
from batch.runs import ledger
from contract.errors import OvernightError, SourceError, StoreError
from contract.experiment import Experiment
from contract.ids import IdKind
from contract.settings import Settings, unknown_variables


@dataclass(frozen=True)
class Records:
    """Ledger, views, counts, blocked posts: None if they cannot be read; the split, if there is one."""

    ledger_rows: dict[str, LedgerRow] | None = None
    views: Columns | None = None
    users: int | None = None
    posts: int | None = None
    blocked: frozenset[str] | None = None
    split: Experiment | None = None


def run_checks(settings: Settings, now: datetime) -> list[Finding]:
    """Check Postgres, Redis and the models; change nothing.

    Raises
    ------
    SettingsError
        A URL cannot be parsed.
    """
    variables = check_variables()
    actor = ledger.actor("batch doctor")
    with postgres.connected(settings, f"overnight {actor}") as engine:  # connects when first used
        findings, records = _check_postgres(settings, engine, now)
        findings = [*variables, *findings]
        try:
            with redis_client.connected(settings, interactive=True) as client:
                findings.extend(_check_redis(Stores(settings, engine, client, actor), records, now))
        except StoreError as error:  # findings before the error stay
            findings.append(fail_from_error("redis", error))
    return findings


def check_variables() -> list[Finding]:
    """Find the environment variables that look like settings and have no effect."""
    return [
        warn(
            "settings",
            f"{name} is not a setting and has no effect",
            f"is {similar} meant?" if similar else "docs/reference/settings.md lists the settings",
        )
        for name, similar in unknown_variables().items()
    ]


def _check_postgres(settings: Settings, engine: sa.Engine, now: datetime) -> tuple[list[Finding], Records]:
    """Check Postgres; return its records for the checks of Redis."""
    findings: list[Finding] = []
    key_prefix = settings.stores.key_prefix
    try:
        with postgres.readable_errors(settings), postgres.snapshot(engine) as connection:
            findings += postgres_checks.check_database(connection)
            findings.append(check_postgres_clock(connection))
            rows, views = read_ledger_rows(connection, key_prefix), None
            if all(each.check != "views" or each.status is Status.OK for each in findings):
                views = check_views(connection)
                findings += postgres_checks.check_ignored_columns(views, settings.night.ignore_columns)
                findings += check_time_index(connection, rows, now)
                if findings[-1].status is not Status.FAIL:
                    findings.append(postgres_checks.check_times(connection, now))
            findings.append(live_runs.check_unfinished(connection, key_prefix, rows))
            counts = {} if views is None else postgres_checks.count_users_and_posts(connection)
            split = read_recorded_split(connection, key_prefix)
            blocked = read_recorded_blocks(connection, key_prefix)
            records = Records(rows, views, split=split, blocked=blocked, **counts)
    except SourceError as error:
        return [*findings, fail_from_error("postgres", error)], Records()
    findings.append(_try(settings, "locks", partial(postgres_checks.check_locks, engine)))
    findings.append(_try(settings, "writes", partial(postgres_checks.check_writes, engine, key_prefix)))
    return findings, records


def _try(settings: Settings, check: str, run: Callable[[], Finding]) -> Finding:
    """Run a check whose errors are those of a night."""
    try:
        with postgres.readable_errors(settings):
            return run()
    except OvernightError as error:
        return fail_from_error(check, error)


def _check_redis(stores: Stores, records: Records, now: datetime) -> Iterator[Finding]:
    """Check Redis, and compare its live runs with the ledger if that can be read."""
    yield from redis_checks.check_servers(stores.redis)
    yield check_redis_clock(stores.redis)
    named = live_run_ids(stores.redis, stores.keys)
    manifests = dict(_read_manifests(stores, named))
    live = LiveRuns(stores.keys, named, manifests, count_keys(stores.redis, stores.keys))
    if records.ledger_rows is not None:
        yield from live_runs.check_pointers(live, records.ledger_rows)
        yield from live_runs.check_orphans(live, records.ledger_rows)
    yield from live_runs.check_lists(live)
    yield from live_runs.check_models(live, Path(stores.settings.night.model_dir), records.views)
    yield from live_runs.check_warnings(live)
    if records.users is not None:
        yield from live_runs.check_users(live, records.users, stores.settings)
    if records.posts is not None:
        yield from live_runs.check_posts(live, records.posts)
    yield from live_runs.check_ages(live, stores.settings.schedule.nightly_cron, now)
    yield redis_checks.check_memory(nodes_of(stores.redis), _run_sizes(stores, live))
    yield small_keys.check_experiment(stores, named, records.split)
    yield small_keys.check_exposures(stores, now)
    yield from small_keys.check_blocked(stores, _kind_of_posts(manifests, records), records.blocked)
    posts = [int(manifest["posts"]) for manifest in manifests.values() if "posts" in manifest]
    yield small_keys.check_texts(stores, max(posts, default=None))


def _read_manifests(stores: Stores, live: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the live runs whose manifest can be read; `check_pointers` reports the others."""
    for run_id in live.values():
        try:
            published_at(run_id, {})  # raises ValueError if it is no run id
            manifest = read_manifest(stores, run_id)
            id_kinds_of(run_id, manifest)
            yield run_id, manifest
        except (StoreError, ValueError):
            continue


def _kind_of_posts(manifests: dict[str, dict[str, Any]], records: Records) -> IdKind | None:
    """Return the kind of the posts' ids by the newest live run, or by the views; None if neither is known."""
    if manifests:
        return id_kinds_of(max(manifests), manifests[max(manifests)]).posts
    return None if records.views is None else records.views.kinds.posts


def _run_sizes(stores: Stores, live: LiveRuns) -> list[int | None]:
    """Return the bytes of each live run; None where they are unknown."""
    return [
        redis_checks.measure_run_bytes(stores.redis, live.key_counts.runs.get(run_id, RunKeys()), manifest)
        for run_id, manifest in live.manifests.items()
    ]
