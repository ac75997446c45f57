"""Refresh: score stale users again and write their lists into the live runs.

Stale are users whose actions since the night have another fingerprint than at their last list, and
users that the night did not know: `find` in stale_users.py. `Rescorer` in rescore.py scores them with
the run's own model, and features as of now.

A run that goes live meanwhile is not changed; the next refresh works on it, from its own cutoff. Users
that a refresh did not finish are still stale for the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from batch import postgres
from batch.context import Stores
from batch.experiment.exposures import drain, remove_late_exposures
from batch.experiment.split import write_back
from batch.files import read_post_ids, read_user_ids, store_folder, work_folder
from batch.forget import Gone, find_gone, forget_users, kept_runs, union
from batch.loading.combined_store import RecentInteractions, fingerprints, read_older, read_recent
from batch.loading.interaction_store import InteractionStore
from batch.loading.model_columns import check_model_columns
from batch.loading.schema import check_views
from batch.progress import Stages
from batch.publishing import blocking, go_live
from batch.redis_client import live_run_id
from batch.refresh import stale_users
from batch.refresh.gone_posts import find_gone_posts, find_returned_posts, write_gone_posts
from batch.refresh.stale_users import NOBODY, StaleUsers
from batch.runs import ledger, lock
from batch.runs.ledger import State
from contract.errors import OvernightError, StoreError
from contract.ids import Id
from contract.manifest import Manifest

if TYPE_CHECKING:
    from batch.loading.network import Network
    from batch.refresh.rescore import Rescorer

log = logging.getLogger("batch")

LATE_EXPOSURES = timedelta(hours=1)
"""Exposures of users who are gone are looked for that far back: serving sends them within seconds."""


class NothingLiveError(OvernightError):
    """Raised when there is no live run to refresh."""


@dataclass(frozen=True)
class StaleRun:
    """A live run, its stale users, and their older interactions that its night did not know."""

    manifest: Manifest
    stale: StaleUsers
    older: InteractionStore | None = None


def refresh(stores: Stores, variants: tuple[str, ...]) -> list[dict[str, Any]]:
    """Refresh the live run of each variant that has one; return one record per run.

    Raises
    ------
    NothingLiveError
        None of the variants has a live run.
    LockedError
        Another refresh is running, or keys of runs are being removed.
    OvernightError
        The refresh of one variant failed; the others are refreshed.
    """
    alone = lock.hold(stores.engine, stores.keys.prefix, lock.REFRESH)
    with stores.readable_errors(), alone as held:
        ledger.create(stores.engine)
        stale_users.create(stores.engine)
        clock = datetime.now(UTC)
        write_back(stores, clock)
        blocking.write_back(stores)
        manifests = list(_read_live(stores, variants))
        if not manifests:
            raise NothingLiveError(
                f"no run of {' or '.join(variants)} is live; `python -m batch run` makes one"
            )
        records = _refresh_runs(stores, manifests, clock, held)
        drain(stores, clock)
        return records


def refresh_after_night(stores: Stores, manifests: list[Manifest]) -> list[Manifest]:
    """Refresh the users who acted since the night's snapshot; return the manifests with `caught_up`.

    An error here is logged and left to the next refresh, because the runs are live already.
    """
    live = {manifest.run_id: manifest for manifest in manifests if manifest.state == State.LIVE}
    if not live:
        return manifests
    try:
        records = refresh(stores, tuple(dict.fromkeys(manifest.variant for manifest in live.values())))
    except OvernightError as error:
        log.warning("users who acted during the night are left to the next refresh: %s", error)
        return manifests
    for record in records:
        run_id = record["run_id"]
        if run_id in live:
            caught_up = {name: record[name] for name in ("users", "new_users", "stages")}
            live[run_id] = replace(live[run_id], caught_up=caught_up)
            ledger.amend_manifest(stores.engine, run_id, {"caught_up": caught_up})
            go_live.amend_manifest(stores, run_id, {"caught_up": caught_up})
            log.info("run %s: %d users acted since the night's snapshot", run_id, record["users"])
    return [live.get(manifest.run_id, manifest) for manifest in manifests]


def _read_live(stores: Stores, variants: tuple[str, ...]) -> Iterator[Manifest]:
    """Yield the manifests of the live runs."""
    client, keys = stores.redis, stores.keys
    for variant in variants:
        run_id = live_run_id(client, keys, variant)
        if run_id is None:
            continue
        value = client.get(keys.manifest(run_id))
        if value is None:
            raise StoreError(f"{run_id} is live without a manifest; `python -m batch run` makes a new run")
        if ledger.find(stores.engine, run_id) is None:
            raise OvernightError(
                f"{run_id} is live and not in this database's ledger: another database publishes under "
                f"the prefix {keys.prefix}; give one of the two another OVERNIGHT_KEY_PREFIX"
            )
        yield Manifest.from_json(value)


def _refresh_runs(
    stores: Stores, manifests: list[Manifest], clock: datetime, held: lock.Lock
) -> list[dict[str, Any]]:
    """Refresh one run after the other; the first error is raised after all runs were tried."""
    errors: list[OvernightError] = []
    found: list[StaleRun] = []
    runs: list[StaleRun] = []
    records = []
    stages = Stages(level=logging.DEBUG)  # usually no user is stale
    since = min(manifest.require_cutoff() for manifest in manifests) - stale_users.LATE
    with ExitStack() as stack:
        folder = stack.enter_context(work_folder(store_folder(stores.settings)))
        network = None
        prefix = stores.keys.prefix
        # An action that is entered after this snapshot makes its user stale for the next refresh.
        with postgres.snapshot(stores.engine) as connection:
            manifests = list(_with_columns(stores, connection, manifests, errors))
            if not manifests:
                raise errors[0]
            with stages.stage("recent", "interactions") as row:
                recent = stack.enter_context(read_recent(connection, stores.settings, since, clock, folder))
                row |= {"interactions": recent.store.interactions}
            with stages.stage("due", "users") as row:
                kinds = recent.kinds
                gone_posts = find_gone_posts(stores, recent.post_ids, kinds.posts)
                for manifest in manifests:
                    with _collect_errors(stores, manifest, errors):
                        stale = NOBODY
                        if not gone_posts.too_many:
                            stale = _find_stale(stores, connection, recent, manifest)
                        found.append(StaleRun(manifest, stale))
                row |= {"users": sum(len(run.stale.users) for run in found)}
                run_ids = kept_runs(connection, prefix, unfinished=False)
                gone = find_gone(connection, stores, run_ids, recent.user_ids, kinds.users)
            if any(run.stale.users for run in found):
                from batch.loading.network import load_network  # imports pandas; usually not needed

                with stages.stage("network", "users") as row:
                    network = load_network(connection, clock)
                    row |= {"users": len(network.users)}
                for run in found:
                    with _collect_errors(stores, run.manifest, errors):
                        read = _read_older(stores, connection, recent, network, run)
                        runs.append(replace(run, older=stack.enter_context(read)))
            else:
                runs = found
        rescorer = None if network is None else _make_rescorer(stores, recent, network, held)
        for run in runs:
            with _collect_errors(stores, run.manifest, errors):
                record = _refresh_run(stores, run, rescorer)
                records.append(record | {"stages": stages.rows + record["stages"]})
    held.check()
    written = write_gone_posts(stores, gone_posts)
    records = [record | {"gone_posts": written} for record in records]
    if not gone_posts.too_many:
        _forget_gone(stores, gone)
    if errors:
        raise errors[0]
    return records


def _with_columns(
    stores: Stores, connection: sa.Connection, manifests: list[Manifest], errors: list[OvernightError]
) -> Iterator[Manifest]:
    """Yield the runs whose model was trained with columns that the views still have."""
    views = check_views(connection)
    for manifest in manifests:
        with _collect_errors(stores, manifest, errors):
            check_model_columns(Path(stores.settings.night.model_dir) / manifest.run_id, views)
            yield manifest


def _find_stale(
    stores: Stores, connection: sa.Connection, recent: RecentInteractions, manifest: Manifest
) -> StaleUsers:
    since = manifest.require_cutoff() - stale_users.LATE
    return stale_users.find(
        connection,
        manifest.run_id,
        fingerprints(recent.store, since, recent.until),
        user_ids=recent.user_ids,
        known=read_user_ids(Path(stores.settings.night.model_dir) / manifest.run_id),
        scored=manifest.users,
    )


def _read_older(
    stores: Stores,
    connection: sa.Connection,
    recent: RecentInteractions,
    network: Network,
    run: StaleRun,
) -> AbstractContextManager[InteractionStore | None]:
    """Read the older interactions of a run's stale users that its night did not know."""
    since = run.manifest.require_cutoff() - stale_users.LATE
    of_night = read_post_ids(Path(stores.settings.night.model_dir) / run.manifest.run_id)
    unknown = set(run.stale.unknown)
    return read_older(
        connection,
        stores.settings,
        recent,
        unknown=run.stale.unknown,
        known=[user for user in run.stale.users if user not in unknown],
        returned=find_returned_posts(network, of_night, since),
    )


def _forget_gone(stores: Stores, gone: list[Gone]) -> None:
    """Forget the users that the network no longer has, unless so many are gone that the view may be wrong.

    Every kept run counts, not only the live ones: a run that was forced over a wrong view must leave the
    lists of the others to a rollback.
    """
    others = [each.run_id for each in gone if not each.comparable]
    if others:
        log.info(
            "nobody is found to be gone from %s: ids of users there are of another kind than in recs.users",
            ", ".join(others),
        )
    for each in gone:
        if each.user_ids.size > stale_users.max_forgotten(stores.settings, each.known):
            log.warning(
                "%d of %d users of %s are not in recs.users any more, more than OVERNIGHT_FORGET_MAX_SHARE "
                "allows; nothing of them is removed; check the view, or if they are deleted: "
                "python -m batch forget --gone",
                each.user_ids.size, each.known, each.run_id,
            )  # fmt: skip
            return
    users = union(gone)
    if users.size:
        forget_users(stores, [each.run_id for each in gone], users)
    remove_late_exposures(stores, datetime.now(UTC) - LATE_EXPOSURES)


@contextmanager
def _collect_errors(stores: Stores, manifest: Manifest, errors: list[OvernightError]) -> Iterator[None]:
    """Keep an error for later, so that the other variant is still refreshed."""
    try:
        with stores.readable_errors():
            yield
    except OvernightError as error:
        log.error("%s is not refreshed: %s", manifest.run_id, error)
        errors.append(error)


def _make_rescorer(stores: Stores, recent: RecentInteractions, network: Network, held: lock.Lock) -> Rescorer:
    from batch.refresh.rescore import Rescorer  # slow to import; usually not needed

    return Rescorer(stores, recent, network, held)


def _refresh_run(stores: Stores, run: StaleRun, rescorer: Rescorer | None) -> dict[str, Any]:
    """Write the lists of a run's stale users, and record them after they are written."""
    manifest, stale, stages = run.manifest, run.stale, Stages()
    run_id, written, new_posts = manifest.run_id, set[Id](), 0
    if rescorer is not None and stale.users:
        rewritten = rescorer.rewrite(manifest, stale, run.older, stages)
        written, new_posts = rewritten.users, rewritten.new_posts
    now = datetime.now(UTC)
    with stores.engine.begin() as connection:
        if stale.fingerprints or written:
            others = ledger.other_runs(manifest.variant, stores.keys.prefix, run_id)
            stale_users.record(connection, run_id, stale, written=written, now=now, other_runs=others)
        refreshed = stale_users.count_refreshed(connection, run_id)
        if written:
            fields = {
                "refreshed_at": now.isoformat(),
                "refreshed_users": refreshed,
                "users_since": (manifest.users_since or 0) + stale.new,
            }
            go_live.amend_manifest(stores, run_id, fields)
    return {
        "variant": manifest.variant,
        "run_id": run_id,
        "users": len(written),
        "new_users": stale.new,
        "new_posts": new_posts,
        "refreshed_users": refreshed,
        "stages": stages.rows,
    }
