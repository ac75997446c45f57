"""Switch which run is live; record runs that are refused, fail or are rolled back."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis
import sqlalchemy as sa
from redis.client import Pipeline
from sqlalchemy.exc import SQLAlchemyError

from batch import redis_client
from batch.context import Stores
from batch.files import store_folder
from batch.runs import ledger
from batch.runs.ledger import Change, Run, State
from contract.codec import decode_object, encode_object
from contract.errors import OvernightError, StoreError
from contract.keys import Keys
from contract.manifest import Manifest

log = logging.getLogger("batch")


def go_live(stores: Stores, run: Run, manifest: Manifest, *, reason: str | None = None) -> Manifest:
    """Make a written run live; return its manifest as published.

    The switch is one SET of one pointer, inside the transaction that records it in the ledger. If the
    SET fails, the ledger rolls back. If the commit fails, the pointer stays, and the next run corrects
    the ledger.
    """
    client, keys, now = stores.redis, stores.keys, datetime.now(UTC)
    manifest = replace(manifest, state=str(State.LIVE), published_at=now)
    client.set(keys.manifest(run.run_id), manifest.to_json())
    with ledger.switch_lock(stores.engine, run.key_prefix) as connection:
        before = redis_client.live_run_id(client, keys, run.variant)
        ledger.make_live(connection, run, Change(now, stores.actor, reason), manifest)
        client.set(keys.live(run.variant), run.run_id)
    if before:
        sync_manifest_states(stores, [Run(before, run.variant, run.key_prefix)])
    return manifest


def refuse(stores: Stores, run: Run, manifest: Manifest, *, reason: str) -> Manifest:
    """Record that the gate refuses a written run; its keys and its model are kept for inspection."""
    manifest = replace(manifest, state=str(State.REFUSED))
    stores.redis.set(stores.keys.manifest(run.run_id), manifest.to_json())
    with stores.engine.begin() as connection:
        ledger.refuse(connection, run, Change(datetime.now(UTC), stores.actor, reason), manifest)
    return manifest


def abandon(stores: Stores, run: Run, *, reason: str) -> None:
    """Record a run as failed and remove its keys and files, as far as Postgres and Redis can be reached.

    The next run does what is left. A run that is live already (its ledger entry was lost) is not changed.
    """
    client, keys, settings = stores.redis, stores.keys, stores.settings
    redis_client.disconnect(client)  # an interrupted command leaves its answer in the connection
    try:
        with redis_client.readable_errors(settings):
            if redis_client.live_run_id(client, keys, run.variant) == run.run_id:
                return
            redis_client.remove_run(client, keys, run.run_id)
    except OvernightError as error:
        log.warning("keys of %s stay until the next run: %s", run.run_id, error)
    for folder in (Path(settings.night.model_dir), store_folder(settings)):
        shutil.rmtree(folder / run.run_id, ignore_errors=True)
    try:
        with stores.engine.begin() as connection:
            change = Change(datetime.now(UTC), stores.actor, reason)
            ledger.set_state(connection, run.run_id, State.FAILED, change)
    except SQLAlchemyError as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        log.warning("the ledger says 'building' of %s until the next run: %s", run.run_id, reason)


def sync_manifest_states(stores: Stores, runs: Iterable[Run]) -> None:
    """Write the ledger's states into the manifests of runs; nothing reads a state that is out of date."""
    client, keys = stores.redis, stores.keys
    try:
        for run in runs:
            with ledger.switch_lock(stores.engine, run.key_prefix) as connection:
                state, name = ledger.state_of(connection, run), keys.manifest(run.run_id)
                fields = _decode(client.get(name))
                if state is not None and fields and fields.get("state") != state:
                    client.set(name, encode_object(fields | {"state": str(state)}), xx=True)
    except SQLAlchemyError as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        log.warning("a manifest keeps an old state until the next run: %s", reason)


def read_manifest(client: redis.Redis, keys: Keys, run_id: str) -> Manifest | None:
    """Return a run's manifest from Redis; None if there is none that can be read."""
    value = client.get(keys.manifest(run_id))
    try:
        return Manifest.from_json(value) if value else None
    except ValueError:
        return None


def _decode(value: str | bytes | None) -> dict[str, Any]:
    """Return the fields of a manifest; none if it is missing or broken."""
    try:
        return decode_object(value) if value else {}
    except ValueError:
        return {}


def amend_manifest(stores: Stores, run_id: str, fields: dict[str, Any]) -> None:
    """Add fields to a run's manifest in Redis, in a transaction: a night may change it at the same time.

    Raises
    ------
    StoreError
        The run was removed meanwhile, although the lock is held; what was written is removed.
    """
    client, name = stores.redis, stores.keys.manifest(run_id)

    def change(pipe: Pipeline) -> None:
        value = pipe.get(name)
        pipe.multi()
        if value is not None:
            pipe.set(name, encode_object(decode_object(str(value)) | fields))

    if not client.transaction(change, name):
        redis_client.remove_run(client, stores.keys, run_id)
        raise StoreError(
            f"{run_id} was removed while it was refreshed; the next refresh works on the live run"
        )


class RollbackError(OvernightError):
    """Raised when there is no run to roll back from or to; nothing is changed."""


@dataclass(frozen=True)
class RolledBack:
    """The runs of a rollback; those in `building` are being built and may go live after it."""

    variant: str
    bad: str
    good: str
    building: list[str]


def plan_rollback(stores: Stores, variant: str, *, bad_run_id: str | None = None) -> RolledBack:
    """Return what `roll_back` would do now; change nothing.

    Raises
    ------
    RollbackError
        It would do nothing: no run is live, another one is, or no earlier run is complete.
    """
    bad = _find_serving(stores, variant, bad_run_id)
    with stores.engine.connect() as connection:
        if not ledger.is_known(connection, bad):
            raise _unknown_run(bad)
        good = _choose_good(stores, connection, bad)
        return RolledBack(variant, bad.run_id, good, _find_building(connection, bad))


def roll_back(stores: Stores, variant: str, *, reason: str, bad_run_id: str | None = None) -> RolledBack:
    """Make the last good run of a variant live again, and close the live run.

    It does not wait for a night: a run that is being built may go live after it.

    Parameters
    ----------
    bad_run_id
        The run to close; if it is not the live one, nothing is done. None for whichever is live.

    Raises
    ------
    RollbackError
        No run is live, another one is live, or no earlier run is complete.
    """
    change = Change(datetime.now(UTC), stores.actor, reason)
    with ledger.switch_lock(stores.engine, stores.keys.prefix) as connection:
        bad = _find_serving(stores, variant, bad_run_id)
        if not ledger.reconcile(connection, bad, change):
            raise _unknown_run(bad)
        good = _choose_good(stores, connection, bad)
        building = _find_building(connection, bad)
        ledger.roll_back(connection, bad, good, change)
        stores.redis.set(stores.keys.live(variant), good)
    sync_manifest_states(stores, [bad, Run(good, variant, bad.key_prefix)])
    return RolledBack(variant, bad.run_id, good, building)


def _find_serving(stores: Stores, variant: str, expected: str | None) -> Run:
    serving = redis_client.live_run_id(stores.redis, stores.keys, variant)
    if not serving:
        raise RollbackError(f"no run of {variant} is live; `python -m batch run` makes one")
    if expected not in (None, serving):
        raise RollbackError(
            f"{expected} is not live, {serving} is, so nothing was changed; look at the run that is live now"
        )
    return Run(serving, variant, stores.keys.prefix)


def _unknown_run(run: Run) -> RollbackError:
    return RollbackError(
        f"{run.variant} serves {run.run_id}, which this ledger does not know; is DATABASE_URL right?"
    )


def _choose_good(stores: Stores, connection: sa.Connection, bad: Run) -> str:
    """Return the newest run that was live before and is whole."""
    earlier = ledger.rollback_candidates(connection, bad)
    good = next((run_id for run_id in earlier if _is_complete(stores.redis, stores.keys, run_id)), None)
    if good is None:
        found = (
            f"none of {len(earlier)} earlier runs is complete in Redis"
            if earlier
            else "no earlier run is kept"
        )
        raise RollbackError(f"{bad.run_id} stays live: {found}; `python -m batch run` makes a new one")
    return good


def _find_building(connection: sa.Connection, bad: Run) -> list[str]:
    unfinished = ledger.unfinished_runs(connection, bad.key_prefix)
    return [run.run_id for run in unfinished if run.variant == bad.variant]


def _is_complete(client: redis.Redis, keys: Keys, run_id: str) -> bool:
    """Return whether a run has its manifest, its popular list and the lists of some of its users."""
    manifest = read_manifest(client, keys, run_id)
    if manifest is None:
        return False
    names = [keys.popular(run_id), *(keys.user(run_id, user) for user in manifest.some_users)]
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.exists(name)
        return all(pipe.execute())
