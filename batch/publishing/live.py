"""Which run is live: the switch, what happens to a run that fails, and what is cleared away."""

from __future__ import annotations

import logging
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from batch.publishing import store
from batch.runs import ledger
from batch.runs.ledger import Run, State
from contract.codec import decode_object, encode_object
from contract.errors import ModelError, OvernightError
from contract.experiment import VARIANTS
from contract.keys import Keys
from contract.settings import Settings

log = logging.getLogger("batch")


def go_live(
    engine: sa.Engine, client: redis.Redis, keys: Keys, run: Run, manifest: dict[str, Any], who: str
) -> None:
    """Make a written run live: one SET of one pointer, inside the transaction that enters it in the ledger.

    If the SET fails the ledger rolls back; if the commit fails the pointer
    stands, and `tidy` brings the ledger up to it before the next run.
    """
    now = datetime.now(UTC)
    manifest |= {"state": str(State.LIVE), "published_at": now.isoformat()}
    before = client.get(keys.live(run.variant))
    client.set(keys.manifest(run.run_id), encode_object(manifest))
    with engine.begin() as connection:
        ledger.make_live(connection, run, now, who, cutoff=manifest["cutoff"], manifest=manifest)
        client.set(keys.live(run.variant), run.run_id)
    if before:
        _restate(client, keys, str(before), State.RETIRED)


def abandon(
    engine: sa.Engine, client: redis.Redis, settings: Settings, run: Run, reason: str, who: str
) -> None:
    """Enter a run as failed and remove its keys, as far as Postgres and Redis can be reached.

    What cannot be done now is done by `tidy` before the next run. A run that
    serves already (its ledger entry was lost) is left alone.
    """
    keys = Keys(settings.key_prefix)
    store.disconnect(client)  # an interrupted command leaves its answer in the connection
    try:
        with store.explained(settings):
            if client.get(keys.live(run.variant)) == run.run_id:
                return
            store.remove_run(client, keys, run.run_id)
    except OvernightError as error:
        log.warning("keys of %s stay until the next run: %s", run.run_id, error)
    shutil.rmtree(Path(settings.model_dir) / run.run_id, ignore_errors=True)
    try:
        with engine.begin() as connection:
            ledger.move(connection, run.run_id, State.FAILED, datetime.now(UTC), who, reason)
    except SQLAlchemyError:
        log.warning(
            "the ledger says 'building' of %s until the next run: Postgres is out of reach", run.run_id
        )


def tidy(engine: sa.Engine, client: redis.Redis, settings: Settings, who: str) -> None:
    """Bring ledger and Redis to one state: note what died, remove keys and models of runs not kept.

    Only under the lock: what says it is being built has died. A run that this
    ledger does not know belongs to somebody else, and is left alone.
    """
    prefix = settings.key_prefix
    keys, now = Keys(prefix), datetime.now(UTC)
    with store.explained(settings):
        serving = {variant: client.get(keys.live(variant)) for variant in VARIANTS}
        unfinished = ledger.unfinished(engine, prefix)
        for run in unfinished:
            with engine.begin() as connection:
                if run.run_id == serving.get(run.variant):
                    fields = _manifest(client, keys, run.run_id)
                    ledger.make_live(connection, run, now, who, manifest=fields)
                else:
                    ledger.move(connection, run.run_id, State.FAILED, now, who, "died before it was live")
        kept = ledger.kept(engine, prefix, settings.keep_runs) | {str(found) for found in serving.values()}
        done = ledger.entered(engine, prefix) - kept
        for run_id in done & (store.runs_in(client, keys) | {run.run_id for run in unfinished}):
            log.info("removed %d keys of run %s", store.remove_run(client, keys, run_id), run_id)
    _remove_models(Path(settings.model_dir), done)


def _remove_models(folder: Path, done: set[str]) -> None:
    """Remove models of runs not kept; an unusable folder is told before a night's work, not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        models = list(folder.iterdir())
    except OSError as error:
        reason = f"{error.strerror}; set OVERNIGHT_MODEL_DIR to a folder that can be written"
        raise ModelError(f"cannot keep models in {folder}: {reason}") from None
    for model in models:
        if model.name in done:
            shutil.rmtree(model, ignore_errors=True)


def _restate(client: redis.Redis, keys: Keys, run_id: str, state: State) -> None:
    fields = _manifest(client, keys, run_id)
    if fields:
        client.set(keys.manifest(run_id), encode_object(fields | {"state": str(state)}), xx=True)


def _manifest(client: redis.Redis, keys: Keys, run_id: str) -> dict[str, Any]:
    value = client.get(keys.manifest(run_id))
    return decode_object(value) if value else {}
