"""What home shows: what the ledger, Redis and serving say now, each read for itself."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from batch.context import Stores
from batch.experiment.history import SplitChange, read_current_change
from batch.experiment.split import StoredSplit, read_split
from batch.redis_client import get_many, live_run_ids
from batch.runs import ledger
from batch.runs.freshness import latest_live
from batch.runs.lock import NIGHT, Holder, find_holders
from batch.runs.pages import RunState, read_live_runs, read_live_since, read_states
from console import job_records
from console.context import Console
from console.job_kinds import DOCTOR
from console.job_kinds import NIGHT as NIGHT_JOB
from console.job_records import JobRecord
from console.readings import Reading
from contract.errors import OvernightError
from contract.experiment import VARIANTS
from contract.manifest import Manifest
from contract.settings import Settings

NIGHTS = 30
"""Runs of a variant that home shows."""

SERVING_TIMEOUT_SECONDS = 0.5
MAX_ANSWER_BYTES = 100_000


@dataclass(frozen=True)
class LedgerOverview:
    """What Postgres says.

    Attributes
    ----------
    states
        Variant -> its newest runs, newest first.
    live
        Variant -> the run that is live in the ledger.
    live_since
        Those runs -> when each last went live.
    latest_live
        When a run last went live for the first time; the first start if none has; None without a run.
    holders
        Purpose of a lock -> who holds it.
    night_started
        When the night started that a console runs, which may not hold its lock yet; None without one.
    unbuilt
        Runs that are recorded as being built although nobody holds the lock.
    split
        The split in force; None if none was recorded.
    """

    states: Mapping[str, list[RunState]]
    live: Mapping[str, str]
    live_since: Mapping[str, datetime]
    latest_live: datetime | None
    holders: Mapping[str, Holder]
    night_started: datetime | None
    unbuilt: list[str]
    split: SplitChange | None


NO_LEDGER = LedgerOverview(
    states={variant: [] for variant in VARIANTS}, live={}, live_since={}, latest_live=None,
    holders={}, night_started=None, unbuilt=[], split=None,
)  # fmt: skip


@dataclass(frozen=True)
class RedisOverview:
    """What Redis says.

    Attributes
    ----------
    live
        Variant -> live run.
    manifests
        Variant -> manifest of its live run; None if it is missing or broken.
    waiting
        Batches of exposures that wait to be moved to Postgres.
    """

    live: Mapping[str, str]
    manifests: Mapping[str, Manifest | None]
    split: StoredSplit
    waiting: int


@dataclass(frozen=True)
class ServingOverview:
    """What serving's /readyz says: its warnings, and variant -> run that it serves."""

    warnings: list[str]
    runs: Mapping[str, str]


@dataclass(frozen=True)
class Overview:
    """All of it, as of `now`."""

    settings: Settings
    now: datetime
    ledger: Reading[LedgerOverview]
    redis: Reading[RedisOverview]
    serving: Reading[ServingOverview]
    doctor: Reading[JobRecord | None]


def read_overview(console: Console, now: datetime) -> Overview:
    """Read everything; a store that is down leaves the last values."""
    read, stores, settings = console.readings.read, console.stores, console.settings
    return Overview(
        settings,
        now,
        read("overview ledger", lambda: read_ledger(stores, now)),
        read("overview redis", lambda: read_redis(stores)),
        read("overview serving", lambda: read_serving(settings.console.serving_url)),
        read("overview doctor", lambda: console.jobs.latest_result(DOCTOR, {})),
    )


STARTING = timedelta(minutes=1)
"""A run that began this recently may have taken the lock after it was asked for."""


def read_ledger(stores: Stores, now: datetime) -> LedgerOverview:
    """Read the newest runs, who holds the locks, and the split in force."""
    engine, prefix = stores.engine, stores.keys.prefix
    if not ledger.schema_version(engine):
        return NO_LEDGER
    went_live, live_since = latest_live(engine, prefix), read_live_since(engine, prefix)
    nights = [job.started_at for job in job_records.list_running(stores) if job.kind == NIGHT_JOB]
    with engine.connect() as connection:
        holders = find_holders(connection, prefix)
        states = {variant: read_states(connection, prefix, variant, NIGHTS) for variant in VARIANTS}
        unbuilt = [
            run.run_id
            for runs in states.values()
            for run in runs
            if NIGHT not in holders
            and run.state in (ledger.State.BUILDING, ledger.State.BUILT)
            and run.started_at < now - STARTING
        ]
        live = read_live_runs(connection, prefix)
        return LedgerOverview(
            states=states, live=live, live_since=live_since, latest_live=went_live, holders=holders,
            night_started=min(nights, default=None), unbuilt=unbuilt,
            split=read_current_change(connection, prefix),
        )  # fmt: skip


def read_redis(stores: Stores) -> RedisOverview:
    """Read the live runs and their manifests, the split, and the length of the stream of exposures."""
    client, keys = stores.redis, stores.keys
    live = live_run_ids(client, keys)
    texts = get_many(client, [keys.manifest(run_id) for run_id in live.values()]) if live else []
    manifests = {variant: _parse(text) for variant, text in zip(live, texts, strict=True)}
    waiting: Any = client.xlen(keys.exposures)
    return RedisOverview(live, manifests, read_split(client, keys), int(waiting))


def _parse(text: str | None) -> Manifest | None:
    try:
        return Manifest.from_json(text) if text else None
    except ValueError:
        return None


def read_serving(url: str) -> ServingOverview:
    """Ask serving's /readyz, without a proxy.

    Raises
    ------
    OvernightError
        It does not answer in time, or with something else.
    """
    parts = urlsplit(url)
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # without a password
    name = f"serving at {address}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{address}/readyz", timeout=SERVING_TIMEOUT_SECONDS) as answer:
            found = json.loads(answer.read(MAX_ANSWER_BYTES))
        warnings = [str(each) for each in found["warnings"]]
        return ServingOverview(
            warnings, {variant: str(run["run_id"]) for variant, run in found["runs"].items()}
        )
    except urllib.error.HTTPError as error:
        with error:
            status = error.code
        raise OvernightError(f"{name} is not ready: status {status}; see its log") from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        reason = getattr(reason, "strerror", None) or reason  # without its number
        raise OvernightError(
            f"{name} does not answer: {reason}; start it, or set OVERNIGHT_CONSOLE_SERVING_URL"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise OvernightError(
            f"{name} answers what serving does not; set OVERNIGHT_CONSOLE_SERVING_URL"
        ) from None
