"""What is cleared away: runs that died, and the keys and models of runs that are not kept.

The ledger says first that a run is being removed, in the same short
transaction that a rollback needs; so nothing goes back to a run that is half
gone. Then its keys go, its manifest last: a removal that dies is finished by
the next one.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import redis
import sqlalchemy as sa

from batch import redis_client
from batch.loading.work_folder import remove_abandoned, store_folder
from batch.publishing import go_live
from batch.runs import ledger, lock
from batch.runs.ledger import Run, Standing, State
from contract.errors import LockedError, ModelError
from contract.experiment import VARIANTS
from contract.keys import Keys
from contract.settings import Settings

log = logging.getLogger("batch")

PATIENCE_SECONDS = 30
"""How long to wait for a refresh before keys of runs are left to the next removal."""

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
    """A run whose keys and model go, why, and how many keys went (would go, in a dry run)."""

    run_id: str
    why: str
    keys: int


def tidy(engine: sa.Engine, client: redis.Redis, settings: Settings, who: str) -> list[Removed]:
    """Bring ledger and Redis to one state, and remove what is not kept. Only under the lock.

    A run that this ledger does not know belongs to somebody else, and is left alone.
    """
    with redis_client.readable_errors(settings):
        _agree(engine, client, settings, who)
        try:
            removed = prune(engine, client, settings)
        except LockedError as error:
            removed = []
            log.warning("runs no longer kept stay until the next run: %s", error)
        with engine.connect() as connection:
            left = ledger.standing(connection, settings.stores.key_prefix)
        kept = [Run(run.run_id, run.variant, settings.stores.key_prefix) for run in left]
        go_live.restate(engine, client, Keys(settings.stores.key_prefix), kept)
        return removed


def prune(
    engine: sa.Engine, client: redis.Redis, settings: Settings, *, dry_run: bool = False
) -> list[Removed]:
    """Remove keys and models of runs that are not kept; only under the lock. A dry run changes nothing.

    Waits a while for a refresh that is writing: it must not write into a run that is gone.

    Raises
    ------
    ModelError
        The folder of the models cannot be used.
    LockedError
        A refresh took too long.
    """
    with lock.held(engine, settings.stores.key_prefix, lock.REFRESH, PATIENCE_SECONDS):
        return _prune(engine, client, settings, dry_run)


def _prune(engine: sa.Engine, client: redis.Redis, settings: Settings, dry_run: bool) -> list[Removed]:
    keys, now, prefix = Keys(settings.stores.key_prefix), datetime.now(UTC), settings.stores.key_prefix
    started = dict.fromkeys(ledger.removed(engine, prefix), "its removal was begun")
    with ledger.switching(engine, prefix) as connection:
        serving = {str(run_id) for run_id in _serving(client, keys).values()}
        before = now - timedelta(minutes=settings.night.prune_after_minutes)
        found = ledger.standing(connection, prefix)
        chosen = {
            run.run_id: WHY[run.state] for run in not_kept(found, serving, settings.night.keep_runs, before)
        }
        if not dry_run:
            ledger.mark_removed(connection, chosen, now)
    going = {run_id: why for run_id, why in (started | chosen).items() if run_id not in serving}
    # A manifest is a run's first key and its last.
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
    }  # often the same
    for folder, kept in folders.items():
        _remove_folders(folder, kept, set(going))
    return removed


def _remove_keys(client: redis.Redis, keys: Keys, runs: Sequence[Removed]) -> list[Removed]:
    """Remove runs' keys, and count them: the one place where keys of whole runs go."""
    removed = [replace(run, keys=redis_client.remove_run(client, keys, run.run_id)) for run in runs]
    for run in removed:
        log.info("removed %d keys of run %s: %s", run.keys, run.run_id, run.why)
    return removed


def not_kept(runs: Sequence[Standing], serving: set[str], keep_runs: int, before: datetime) -> list[Standing]:
    """Choose the runs whose keys go.

    Per variant there stay: what serves or is live, the newest that were live
    before, `keep_runs` in all, and the newest that the gate refused. Whatever
    was live after `before` stays too: somebody may be reading it.

    Parameters
    ----------
    runs
        Newest first. One that says it is being built has died: the caller holds the lock.
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


def _agree(engine: sa.Engine, client: redis.Redis, settings: Settings, who: str) -> None:
    """Make the ledger say what serves, and close what died."""
    keys, prefix, now = Keys(settings.stores.key_prefix), settings.stores.key_prefix, datetime.now(UTC)
    with ledger.switching(engine, prefix) as connection:
        serving = _serving(client, keys)
        for variant, run_id in serving.items():
            run = Run(run_id, variant, prefix)
            ledger.agree(connection, run, now, who, go_live.read_manifest(client, keys, run_id))
        for run in ledger.unfinished(connection, prefix):
            ledger.move(connection, run.run_id, State.FAILED, now, who, "died before it was live")


def _serving(client: redis.Redis, keys: Keys) -> dict[str, str]:
    found = {variant: client.get(keys.live(variant)) for variant in VARIANTS}
    return {variant: str(run_id) for variant, run_id in found.items() if run_id}


def _remove_folders(folder: Path, kept: str, done: set[str]) -> None:
    """Remove what runs not kept have on disk, and what killed processes left.

    An unusable folder is told before a night's work, not after.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        of_runs = list(folder.iterdir())
    except OSError as error:
        advice = "set OVERNIGHT_MODEL_DIR and OVERNIGHT_STORE_DIR to folders that can be written"
        raise ModelError(f"cannot keep {kept} in {folder}: {error.strerror}; {advice}") from None
    for of_run in of_runs:
        if of_run.name in done:
            shutil.rmtree(of_run, ignore_errors=True)
    remove_abandoned(folder)
