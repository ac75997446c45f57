"""A refresh: who acted since the night is scored again, and their lists in the live run are written anew.

A run that goes live meanwhile is not touched; the next refresh takes it up,
from its own cutoff. What a refresh did not finish is still due at the next.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
import sqlalchemy as sa
from redis.client import Pipeline

from batch.experiment.change import write_back
from batch.experiment.drain import drain
from batch.learning.scored_users import users_of_run
from batch.loading import source
from batch.progress import Stages
from batch.publishing import store
from batch.refreshing import due
from batch.refreshing.due import Due
from batch.runs import ledger, lock
from contract.codec import decode_object, encode_object
from contract.errors import OvernightError, StoreError
from contract.keys import Keys
from contract.settings import Settings

if TYPE_CHECKING:
    from batch.refreshing.rescore import Rescorer

log = logging.getLogger("batch")


class NothingLiveError(OvernightError):
    """Raised when there is no live run to refresh."""


@dataclass(frozen=True)
class Refresh:
    """What a refresh works with; connections are opened by the entry point."""

    settings: Settings
    engine: sa.Engine
    redis: redis.Redis

    @property
    def keys(self) -> Keys:
        """Key names under the prefix of the settings."""
        return Keys(self.settings.key_prefix)


def refresh(work: Refresh, variants: tuple[str, ...]) -> list[dict[str, Any]]:
    """Refresh the live run of each variant that has one; return what was done, a record each.

    Raises
    ------
    NothingLiveError
        None of the variants has a live run.
    LockedError
        Another refresh is at work, or keys of runs are being removed.
    OvernightError
        Something is wrong with a variant; the others are refreshed all the same.
    """
    alone = lock.held(work.engine, work.settings.key_prefix, lock.REFRESH)
    with _explained(work.settings), alone as held:
        ledger.create(work.engine)
        due.create(work.engine)
        clock = datetime.now(UTC)
        write_back(work.engine, work.redis, work.settings, clock, ledger.actor("batch refresh"))
        manifests = list(_live(work, variants))
        if not manifests:
            raise NothingLiveError(
                f"no run of {' or '.join(variants)} is live; `python -m batch run` makes one"
            )
        done = _each(work, manifests, clock, held)
        drain(work.engine, work.redis, work.settings, clock)
        return done


def _live(work: Refresh, variants: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the manifests of the live runs."""
    for variant in variants:
        run_id = str(work.redis.get(work.keys.live(variant)) or "")
        if not run_id:
            continue
        value = work.redis.get(work.keys.manifest(run_id))
        if value is None:
            raise StoreError(f"{run_id} is live without a manifest; `python -m batch run` makes a new run")
        if ledger.find(work.engine, run_id) is None:
            raise OvernightError(
                f"{run_id} is live and not in this database's ledger: another database publishes under "
                f"the prefix {work.keys.prefix}; give one of the two another OVERNIGHT_KEY_PREFIX"
            )
        yield decode_object(value)


def _due(work: Refresh, manifest: dict[str, Any], clock: datetime) -> Due:
    cutoff = datetime.fromisoformat(manifest["cutoff"])
    known = users_of_run(Path(work.settings.model_dir) / manifest["run_id"])
    with source.snapshot(work.engine) as connection:
        return due.find(connection, manifest["run_id"], cutoff, clock, known, manifest["users"])


def _each(
    work: Refresh, manifests: list[dict[str, Any]], clock: datetime, held: lock.Lock
) -> list[dict[str, Any]]:
    """Refresh run by run; what is wrong with one is raised when the others are done."""
    failed: list[OvernightError] = []
    found, done = [], []
    # Before anything else is read: what is entered from now on is due next time, whether it is seen or not.
    for manifest in manifests:
        with _set_aside(work.settings, manifest, failed):
            found.append((manifest, _due(work, manifest, clock)))
    rescorer = _rescorer(work, clock, held) if any(who.users for _, who in found) else None
    for manifest, who in found:
        with _set_aside(work.settings, manifest, failed):
            done.append(_refresh_run(work, manifest, who, rescorer))
    if failed:
        raise failed[0]
    return done


@contextmanager
def _set_aside(settings: Settings, manifest: dict[str, Any], failed: list[OvernightError]) -> Iterator[None]:
    """Keep an error for later, so that the other variant is not held up by it."""
    try:
        with _explained(settings):
            yield
    except OvernightError as error:
        log.error("%s is not refreshed: %s", manifest["run_id"], error)
        failed.append(error)


def _rescorer(work: Refresh, clock: datetime, held: lock.Lock) -> Rescorer:
    from batch.refreshing.rescore import Rescorer  # takes seconds to load, and mostly nobody is due

    return Rescorer(work.settings, work.engine, work.redis, clock, held)


def _refresh_run(
    work: Refresh, manifest: dict[str, Any], who: Due, rescorer: Rescorer | None
) -> dict[str, Any]:
    """Score and write who is due in one run, and only then note it; return the record."""
    run_id, stages, written, new_posts = manifest["run_id"], Stages(), set[int](), 0
    if rescorer is not None and who.users:
        written, new_posts = rescorer.rewrite(manifest, who.users, stages)
    now = datetime.now(UTC)
    with work.engine.begin() as connection:
        if who.marks or written:
            others = ledger.others(manifest["variant"], work.keys.prefix, run_id)
            due.note(connection, run_id, who, written, now, others)
        since = due.refreshed_so_far(connection, run_id)
        if written:
            _restate(
                work,
                run_id,
                {
                    "refreshed_at": now.isoformat(),
                    "refreshed_users": since,
                    "users_since": manifest.get("users_since", 0) + who.new,
                },
            )
    return {
        "variant": manifest["variant"],
        "run_id": run_id,
        "users": len(written),
        "new_users": who.new,
        "new_posts": new_posts,
        "refreshed_users": since,
        "stages": stages.rows,
    }


def _restate(work: Refresh, run_id: str, fields: dict[str, Any]) -> None:
    """Put fields into a run's manifest, whatever a night changes in it at the same time.

    Raises
    ------
    StoreError
        The run was removed meanwhile, which the lock should have prevented; what was written is removed.
    """
    name = work.keys.manifest(run_id)

    def change(pipe: Pipeline) -> None:
        value = pipe.get(name)
        pipe.multi()
        if value is not None:
            pipe.set(name, encode_object(decode_object(str(value)) | fields))

    if not work.redis.transaction(change, name):
        store.remove_run(work.redis, work.keys, run_id)
        raise StoreError(f"{run_id} was removed while it was refreshed; the next refresh takes what is live")


@contextmanager
def _explained(settings: Settings) -> Iterator[None]:
    with source.explained(settings), store.explained(settings):
        yield
