"""A refresh: who acted since the night is scored again, and their lists in the live run are written anew.

A run that goes live meanwhile is not touched; the next refresh takes it up,
from its own cutoff. What a refresh did not finish is still due at the next.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
import sqlalchemy as sa

from batch import postgres, redis_client
from batch.context import Stores
from batch.experiment.exposures import drain
from batch.experiment.split import write_back
from batch.loading.combined_store import RecentInteractions, fingerprints, read_new_users, read_recent
from batch.loading.interaction_store import InteractionStore
from batch.loading.work_folder import store_folder, work_folder
from batch.progress import Stages
from batch.publishing import go_live
from batch.refresh import stale_users
from batch.refresh.stale_users import Due
from batch.runs import ledger, lock
from batch.training.model_files import read_user_ids
from contract.codec import decode_object
from contract.errors import OvernightError, StoreError
from contract.keys import Keys
from contract.settings import Settings

if TYPE_CHECKING:
    from batch.loading.network import Network
    from batch.refresh.rescore import Rescorer

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
        return Keys(self.settings.stores.key_prefix)


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
    alone = lock.held(work.engine, work.settings.stores.key_prefix, lock.REFRESH)
    with _readable_errors(work.settings), alone as held:
        ledger.create(work.engine)
        stale_users.create(work.engine)
        clock = datetime.now(UTC)
        stores = Stores(work.settings, work.engine, work.redis, ledger.actor("batch refresh"))
        write_back(stores, clock)
        manifests = list(_live(work, variants))
        if not manifests:
            raise NothingLiveError(
                f"no run of {' or '.join(variants)} is live; `python -m batch run` makes one"
            )
        done = _each(work, manifests, clock, held)
        drain(stores, clock)
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


def _each(
    work: Refresh, manifests: list[dict[str, Any]], clock: datetime, held: lock.Lock
) -> list[dict[str, Any]]:
    """Refresh run by run; what is wrong with one is raised when the others are done."""
    failed: list[OvernightError] = []
    found, done, stages = [], [], Stages(level=logging.DEBUG)  # mostly nobody is due
    since = min(datetime.fromisoformat(manifest["cutoff"]) for manifest in manifests) - stale_users.LATE
    with ExitStack() as stack:
        folder = stack.enter_context(work_folder(store_folder(work.settings)))
        network = None
        # What is entered after this snapshot is due next time.
        with postgres.snapshot(work.engine) as connection:
            with stages.stage("recent", "interactions") as stats:
                recent = stack.enter_context(read_recent(connection, work.settings, since, clock, folder))
                stats |= {"interactions": recent.store.interactions}
            with stages.stage("due", "users") as stats:
                for manifest in manifests:
                    with _set_aside(work.settings, manifest, failed):
                        who = _due(work, connection, recent, manifest)
                        read = read_new_users(connection, work.settings, recent, who.unknown)
                        found.append((manifest, who, stack.enter_context(read)))
                stats |= {"users": sum(len(who.users) for _, who, _ in found)}
            if any(who.users for _, who, _ in found):
                from batch.loading.network import load_network  # loads pandas, and mostly nobody is due

                with stages.stage("network", "users") as stats:
                    network = load_network(connection, clock)
                    stats |= {"users": len(network.users)}
        rescorer = None if network is None else _rescorer(work, recent, network, held)
        for manifest, who, new_users in found:
            with _set_aside(work.settings, manifest, failed):
                record = _refresh_run(work, manifest, who, new_users, rescorer)
                done.append(record | {"stages": stages.rows + record["stages"]})
    if failed:
        raise failed[0]
    return done


def _due(
    work: Refresh, connection: sa.Connection, recent: RecentInteractions, manifest: dict[str, Any]
) -> Due:
    cutoff = datetime.fromisoformat(manifest["cutoff"])
    known = read_user_ids(Path(work.settings.night.model_dir) / manifest["run_id"])
    marks = fingerprints(recent.store, cutoff - stale_users.LATE, recent.until)
    return stale_users.find(connection, manifest["run_id"], marks, recent.user_ids, known, manifest["users"])


@contextmanager
def _set_aside(settings: Settings, manifest: dict[str, Any], failed: list[OvernightError]) -> Iterator[None]:
    """Keep an error for later, so that the other variant is not held up by it."""
    try:
        with _readable_errors(settings):
            yield
    except OvernightError as error:
        log.error("%s is not refreshed: %s", manifest["run_id"], error)
        failed.append(error)


def _rescorer(work: Refresh, recent: RecentInteractions, network: Network, held: lock.Lock) -> Rescorer:
    from batch.refresh.rescore import Rescorer  # takes seconds to load, and mostly nobody is due

    return Rescorer(work.settings, work.redis, recent, network, held)


def _refresh_run(
    work: Refresh,
    manifest: dict[str, Any],
    who: Due,
    new_users: InteractionStore | None,
    rescorer: Rescorer | None,
) -> dict[str, Any]:
    """Score and write who is due in one run, and only then note it; return the record."""
    run_id, stages, written, new_posts = manifest["run_id"], Stages(), set[int](), 0
    if rescorer is not None and who.users:
        written, new_posts = rescorer.rewrite(manifest, who, new_users, stages)
    now = datetime.now(UTC)
    with work.engine.begin() as connection:
        if who.marks or written:
            others = ledger.others(manifest["variant"], work.keys.prefix, run_id)
            stale_users.note(connection, run_id, who, written, now, others)
        since = stale_users.refreshed_so_far(connection, run_id)
        if written:
            go_live.amend_manifest(
                work.redis,
                work.keys,
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


@contextmanager
def _readable_errors(settings: Settings) -> Iterator[None]:
    with postgres.readable_errors(settings), redis_client.readable_errors(settings):
        yield
