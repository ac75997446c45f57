"""Which run is live: the one switch, a run that is refused, and a run that fails."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis
import sqlalchemy as sa
from redis.client import Pipeline
from sqlalchemy.exc import SQLAlchemyError

from batch import redis_client
from batch.loading.work_folder import store_folder
from batch.runs import ledger
from batch.runs.ledger import Run, State
from contract.codec import decode_object, encode_object
from contract.errors import OvernightError, StoreError
from contract.keys import Keys
from contract.settings import Settings

log = logging.getLogger("batch")


def go_live(
    engine: sa.Engine,
    client: redis.Redis,
    keys: Keys,
    run: Run,
    manifest: dict[str, Any],
    who: str,
    reason: str | None = None,
) -> None:
    """Make a written run live: one SET of one pointer, inside the transaction that enters it in the ledger.

    If the SET fails the ledger rolls back; if the commit fails the pointer
    stands, and the ledger is brought up to it before the next run.
    """
    now = datetime.now(UTC)
    manifest |= {"state": str(State.LIVE), "published_at": now.isoformat()}
    client.set(keys.manifest(run.run_id), encode_object(manifest))
    with ledger.switching(engine, run.key_prefix) as connection:
        before = client.get(keys.live(run.variant))
        ledger.make_live(connection, run, now, who, reason, cutoff=manifest["cutoff"], manifest=manifest)
        client.set(keys.live(run.variant), run.run_id)
    if before:
        restate(engine, client, keys, [Run(str(before), run.variant, run.key_prefix)])


def refuse(
    engine: sa.Engine,
    client: redis.Redis,
    keys: Keys,
    run: Run,
    manifest: dict[str, Any],
    who: str,
    reason: str,
) -> None:
    """Keep a written run from going live; its keys and its model stay for a look."""
    manifest |= {"state": str(State.REFUSED)}
    client.set(keys.manifest(run.run_id), encode_object(manifest))
    with engine.begin() as connection:
        ledger.refuse(connection, run, datetime.now(UTC), who, reason, manifest)


def abandon(
    engine: sa.Engine, client: redis.Redis, settings: Settings, run: Run, reason: str, who: str
) -> None:
    """Enter a run as failed and remove its keys, as far as Postgres and Redis can be reached.

    What cannot be done now is done before the next run. A run that
    serves already (its ledger entry was lost) is left alone.
    """
    keys = Keys(settings.stores.key_prefix)
    redis_client.disconnect(client)  # an interrupted command leaves its answer in the connection
    try:
        with redis_client.readable_errors(settings):
            if client.get(keys.live(run.variant)) == run.run_id:
                return
            redis_client.remove_run(client, keys, run.run_id)
    except OvernightError as error:
        log.warning("keys of %s stay until the next run: %s", run.run_id, error)
    for folder in (Path(settings.night.model_dir), store_folder(settings)):
        shutil.rmtree(folder / run.run_id, ignore_errors=True)
    try:
        with engine.begin() as connection:
            ledger.move(connection, run.run_id, State.FAILED, datetime.now(UTC), who, reason)
    except SQLAlchemyError:
        log.warning(
            "the ledger says 'building' of %s until the next run: Postgres is out of reach", run.run_id
        )


def restate(engine: sa.Engine, client: redis.Redis, keys: Keys, runs: Iterable[Run]) -> None:
    """Write into the manifests of runs the states that the ledger gives them; what differs harms nobody."""
    try:
        for run in runs:
            with ledger.switching(engine, run.key_prefix) as connection:
                state, fields = ledger.state_of(connection, run), read_manifest(client, keys, run.run_id)
                if state is not None and fields and fields.get("state") != state:
                    fields |= {"state": str(state)}
                    client.set(keys.manifest(run.run_id), encode_object(fields), xx=True)
    except SQLAlchemyError as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        log.warning("a manifest tells an old state until the next run: %s", reason)


def read_manifest(client: redis.Redis, keys: Keys, run_id: str) -> dict[str, Any]:
    """Return a run's manifest as Redis has it; empty where there is none that can be read."""
    value = client.get(keys.manifest(run_id))
    try:
        return decode_object(value) if value else {}
    except ValueError:
        return {}


def amend_manifest(client: redis.Redis, keys: Keys, run_id: str, fields: dict[str, Any]) -> None:
    """Put fields into a run's manifest in Redis, whatever a night changes in it at the same time.

    Raises
    ------
    StoreError
        The run was removed meanwhile, which the lock should have prevented; what was written is removed.
    """
    name = keys.manifest(run_id)

    def change(pipe: Pipeline) -> None:
        value = pipe.get(name)
        pipe.multi()
        if value is not None:
            pipe.set(name, encode_object(decode_object(str(value)) | fields))

    if not client.transaction(change, name):
        redis_client.remove_run(client, keys, run_id)
        raise StoreError(f"{run_id} was removed while it was refreshed; the next refresh takes what is live")


KNOWN_USERS = "some_users"
"""In a manifest: users that have a list in the run."""


class RollbackError(OvernightError):
    """Raised when there is nothing to go back from or to; nothing is changed."""


@dataclass(frozen=True)
class RolledBack:
    """From which run to which; `building` are runs under way, which may go live after it."""

    variant: str
    bad: str
    good: str
    building: list[str]


def roll_back(
    engine: sa.Engine, client: redis.Redis, keys: Keys, variant: str, reason: str, who: str
) -> RolledBack:
    """Make the last good run of a variant live again, and close the one that is.

    It does not wait for a night: a run being built meanwhile may go live after it.

    Raises
    ------
    RollbackError
        Nothing is live, or no earlier run is still whole.
    """
    prefix, now = keys.prefix, datetime.now(UTC)
    with ledger.switching(engine, prefix) as connection:
        serving = client.get(keys.live(variant))
        if not serving:
            raise RollbackError(f"no run of {variant} is live; `python -m batch run` makes one")
        bad = Run(str(serving), variant, prefix)
        if not ledger.agree(connection, bad, now, who):
            raise RollbackError(
                f"{variant} serves {bad.run_id}, which this ledger does not know; is DATABASE_URL right?"
            )
        earlier = ledger.to_go_back_to(connection, bad)
        good = next((run_id for run_id in earlier if _is_whole(client, keys, run_id)), None)
        if good is None:
            found = (
                f"of {len(earlier)} earlier ones none is whole in Redis"
                if earlier
                else "no earlier one is kept"
            )
            raise RollbackError(f"{bad.run_id} stays live: {found}; `python -m batch run` makes a new one")
        building = [run.run_id for run in ledger.unfinished(connection, prefix) if run.variant == variant]
        ledger.roll_back(connection, bad, good, now, who, reason)
        client.set(keys.live(variant), good)
    restate(engine, client, keys, [bad, Run(good, variant, prefix)])
    return RolledBack(variant, bad.run_id, good, building)


def _is_whole(client: redis.Redis, keys: Keys, run_id: str) -> bool:
    """Tell whether a run has its manifest, its popular list and the lists of some of its users."""
    manifest = read_manifest(client, keys, run_id)
    if not manifest:
        return False
    names = [keys.popular(run_id), *(keys.user(run_id, user) for user in manifest.get(KNOWN_USERS, []))]
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.exists(name)
        return all(pipe.execute())
