"""Clean up: record runs that died, and remove keys and models of runs that are not kept.

The ledger first records that a run is being removed, in the short transaction that a rollback also
needs, so no rollback chooses a run that is partly removed. Then its keys are removed, its manifest
last: the next clean-up finishes a removal that dies.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import redis

from batch import redis_client
from batch.context import Stores
from batch.files import remove_abandoned, store_folder
from batch.publishing import go_live
from batch.runs import ledger, lock
from batch.runs.ledger import Change, Run, RunStatus, State
from contract.errors import LockedError, ModelError
from contract.keys import Keys

log = logging.getLogger("batch")

LOCK_TIMEOUT_SECONDS = 30
"""How long to wait for a refresh before keys of runs are left to the next clean-up."""

WHY = {
    State.BUILDING: "died before it was live",
    State.BUILT: "died before it was live",
    State.FAILED: "it failed",
    State.RETIRED: "newer runs are kept",
    State.REFUSED: "a newer run was refused",
    State.ROLLED_BACK: "it was rolled back",
}


@dataclass(frozen=True)
class Removed:
    """A run whose keys and model are removed, why, and the number of its keys."""

    run_id: str
    why: str
    keys: int


def clean_up(stores: Stores) -> list[Removed]:
    """Reconcile ledger and Redis, and remove runs that are not kept. The caller holds the run lock.

    A run that this ledger does not know belongs to another database; it is not changed.
    """
    with redis_client.readable_errors(stores.settings):
        _reconcile(stores)
        try:
            removed = prune(stores)
        except LockedError as error:
            removed = []
            log.warning("runs that are not kept stay until the next run: %s", error)
        with stores.engine.connect() as connection:
            left = ledger.run_statuses(connection, stores.keys.prefix)
        kept = [Run(run.run_id, run.variant, stores.keys.prefix) for run in left]
        go_live.sync_manifest_states(stores, kept)
        return removed


def prune(stores: Stores, *, dry_run: bool = False) -> list[Removed]:
    """Remove keys and models of runs that are not kept. The caller holds the run lock.

    Waits up to LOCK_TIMEOUT_SECONDS for a refresh, which must not write into a run that is removed. A
    dry run changes nothing.

    Raises
    ------
    ModelError
        The folder of the models cannot be used.
    LockedError
        A refresh took too long.
    """
    with lock.hold(stores.engine, stores.keys.prefix, lock.REFRESH, LOCK_TIMEOUT_SECONDS):
        return _prune(stores, dry_run)


def _prune(stores: Stores, dry_run: bool) -> list[Removed]:
    client, keys, settings, now = stores.redis, stores.keys, stores.settings, datetime.now(UTC)
    started = dict.fromkeys(ledger.removed_runs(stores.engine, keys.prefix), "its removal was begun")
    with ledger.switch_lock(stores.engine, keys.prefix) as connection:
        serving = set(redis_client.live_run_ids(client, keys).values())
        before = now - timedelta(minutes=settings.night.prune_after_minutes)
        statuses = ledger.run_statuses(connection, keys.prefix)
        chosen = {
            run.run_id: WHY[run.state]
            for run in runs_to_prune(statuses, serving, settings.night.keep_runs, before)
        }
        if not dry_run:
            ledger.mark_removed(connection, chosen, now)
    going = {run_id: why for run_id, why in (started | chosen).items() if run_id not in serving}
    # A manifest is the first key of a run and the last.
    with_keys = [
        Removed(run_id, going[run_id], redis_client.keys_of_run(client, keys, run_id))
        for run_id in sorted(set(going) & redis_client.runs_in(client, keys))
    ]
    if dry_run:
        return with_keys
    removed = _remove_keys(client, keys, with_keys)
    folders = {
        store_folder(settings): "interactions",
        Path(settings.night.model_dir): "models",
    }  # often equal
    for folder, content in folders.items():
        _remove_folders(folder, content, set(going))
    return removed


def _remove_keys(client: redis.Redis, keys: Keys, runs: Sequence[Removed]) -> list[Removed]:
    """Remove and count the keys of runs; nothing else removes the keys of whole runs."""
    removed = [replace(run, keys=redis_client.remove_run(client, keys, run.run_id)) for run in runs]
    for run in removed:
        log.info("removed %d keys of run %s: %s", run.keys, run.run_id, run.why)
    return removed


def runs_to_prune(
    runs: Sequence[RunStatus], serving: set[str], keep_runs: int, before: datetime
) -> list[RunStatus]:
    """Choose the runs to remove.

    Per variant these are kept: the live run, the newest runs that were live before, up to `keep_runs`
    in all, and the newest refused run. A run that was live after `before` is kept too, because a reader
    may still use it.

    Parameters
    ----------
    runs
        Newest first. One that is recorded as being built has died: the caller holds the run lock.
    serving
        Ids of the runs that are live in Redis.
    """
    found = []
    for variant in {run.variant for run in runs}:
        own = [run for run in runs if run.variant == variant]
        live_now = [run for run in own if run.run_id in serving or run.state == State.LIVE]
        retired = [run for run in own if run.state == State.RETIRED and run not in live_now]
        refused = [run for run in own if run.state == State.REFUSED]
        kept = {*live_now, *retired[: max(keep_runs - len(live_now), 0)], *refused[:1]}
        was_live = (State.RETIRED, State.ROLLED_BACK)
        kept |= {run for run in own if run.state in was_live and run.since > before}
        found += [run for run in own if run not in kept]
    return sorted(found, key=lambda run: run.run_id)


def _reconcile(stores: Stores) -> None:
    """Record in the ledger which runs are live, and close those that died."""
    change, keys = Change(datetime.now(UTC), stores.actor), stores.keys
    with ledger.switch_lock(stores.engine, keys.prefix) as connection:
        for variant, run_id in redis_client.live_run_ids(stores.redis, keys).items():
            run = Run(run_id, variant, keys.prefix)
            ledger.reconcile(connection, run, change, go_live.read_manifest(stores.redis, keys, run_id))
        died = replace(change, reason="died before it was live")
        for run in ledger.unfinished_runs(connection, keys.prefix):
            ledger.set_state(connection, run.run_id, State.FAILED, died)


def _remove_folders(folder: Path, content: str, removed: set[str]) -> None:
    """Remove the files of removed runs, and what killed processes left.

    It fails on an unusable folder, so that a night fails before its work and not after.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        of_runs = list(folder.iterdir())
    except OSError as error:
        advice = "set OVERNIGHT_MODEL_DIR and OVERNIGHT_STORE_DIR to folders that can be written"
        raise ModelError(f"cannot keep {content} in {folder}: {error.strerror}; {advice}") from None
    for of_run in of_runs:
        if of_run.name in removed:
            shutil.rmtree(of_run, ignore_errors=True)
    remove_abandoned(folder)
