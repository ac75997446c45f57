"""The whole examination, in order; whatever cannot be reached is a finding, and the rest goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import redis

from batch import postgres, redis_client
from batch.doctor import finding, live_runs, postgres_checks, redis_checks, small_keys, time_index
from batch.doctor.finding import Finding, Status, fail
from batch.doctor.postgres_checks import Entered, entered, split_in_force
from batch.doctor.redis_checks import Census, RunKeys, census
from batch.inspection import lists
from batch.runs import ledger
from contract.errors import SourceError, StoreError
from contract.experiment import VARIANTS, Experiment
from contract.keys import Keys
from contract.settings import Settings


@dataclass
class Known:
    """What Postgres says: the ledger, None if it cannot be read, and the split of the users if it has one."""

    ledger: dict[str, Entered] | None = None
    split: Experiment | None = None


def examine(settings: Settings, now: datetime) -> list[Finding]:
    """Examine Postgres, Redis and the models; nothing is changed anywhere.

    Raises
    ------
    SettingsError
        A URL cannot be used at all.
    """
    found, known = _postgres(settings, now)
    return [*found, *_redis(settings, known, now)]


def _postgres(settings: Settings, now: datetime) -> tuple[list[Finding], Known]:
    """Examine Postgres; return what it says along with what was found."""
    found: list[Finding] = []
    try:
        with (
            postgres.connected(settings, f"overnight {ledger.actor('batch doctor')}") as engine,
            postgres.snapshot(engine) as connection,
        ):
            found += postgres_checks.examined(connection)
            found.append(finding.postgres_clock(connection))
            ledgered = entered(connection, settings.stores.key_prefix)
            if all(each.check != "views" or each.status is Status.OK for each in found):
                found += time_index.examined(connection, ledgered, now)
            found.append(live_runs.unfinished(connection, settings.stores.key_prefix, ledgered))
            return found, Known(ledgered, split_in_force(connection, settings.stores.key_prefix))
    except SourceError as error:
        told, _, mend = str(error).rpartition("; ")
        return [*found, fail("postgres", told, mend)], Known()


def _redis(settings: Settings, known: Known, now: datetime) -> list[Finding]:
    """Examine Redis, and hold what it serves against the ledger as far as that is known."""
    found: list[Finding] = []
    try:
        with redis_client.connected(settings) as client:
            found += redis_checks.examined(client)
            found.append(finding.redis_clock(client))
            found += _served(client, settings, known, now)
    except StoreError as error:
        told, _, mend = str(error).rpartition("; ")
        found.append(fail("redis", told, mend))
    return found


def _served(client: redis.Redis, settings: Settings, known: Known, now: datetime) -> Iterator[Finding]:
    keys = Keys(settings.stores.key_prefix)
    named = {variant: client.get(keys.live(variant)) for variant in VARIANTS}
    live = {variant: str(run_id) for variant, run_id in named.items() if run_id}
    manifests = dict(_manifests(client, keys, live))
    counted = census(client, keys)
    if known.ledger is not None:
        yield from live_runs.pointers(keys, live, known.ledger, counted)
        yield from live_runs.orphans(keys, live, known.ledger, counted)
    whole = {variant: run_id for variant, run_id in live.items() if run_id in manifests}
    yield from live_runs.counts(whole, manifests, counted)
    yield from live_runs.models(Path(settings.night.model_dir), whole)
    yield from live_runs.ages(whole, manifests, settings.schedule.nightly_cron, now)
    yield redis_checks.enough(redis_checks.free_memory(client), _sizes(client, counted, manifests))
    yield small_keys.experiment(client, keys, live, known.split)
    yield small_keys.exposures(client, keys, settings.experiment.exposures_batches, now)
    yield small_keys.blocked(client, keys)
    posts = [int(manifest["posts"]) for manifest in manifests.values() if "posts" in manifest]
    yield small_keys.texts(client, keys, max(posts, default=None))


def _manifests(client: redis.Redis, keys: Keys, live: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the live runs with a manifest that can be read; of the others the pointers' findings tell."""
    for run_id in live.values():
        try:
            lists.published_at(run_id, {})
            yield run_id, lists.manifest_of(client, keys, run_id)
        except (StoreError, ValueError):
            continue


def _sizes(client: redis.Redis, counted: Census, manifests: dict[str, dict[str, Any]]) -> list[int | None]:
    return [
        redis_checks.bytes_of_run(client, counted.runs.get(run_id, RunKeys()), manifest)
        for run_id, manifest in manifests.items()
    ]
