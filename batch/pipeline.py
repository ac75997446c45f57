"""The night: build and publish each variant, in order. Each step is in the module it is imported from."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime

from threadpoolctl import threadpool_limits

from batch.context import Stores
from batch.evaluation.learner import Learner
from batch.experiment.exposures import drain
from batch.experiment.split import write_back
from batch.features.embeddings import remove_stale_vectors
from batch.feed_rules.segments import check_attribute
from batch.gate import check as gate
from batch.loading.combined_store import fingerprints
from batch.loading.schema import check_views
from batch.progress import Stages
from batch.publishing import blocking, go_live, shared_keys
from batch.publishing.manifest import make_manifest
from batch.publishing.prune import clean_up
from batch.publishing.write import write_run, write_similar_posts
from batch.refresh import stale_users
from batch.refresh.gone_posts import clear_gone_posts
from batch.refresh.refresh import refresh_after_night
from batch.reports.run_page import write_run_page
from batch.runs import ledger, lock
from batch.runs.ledger import Run
from batch.signals import InterruptedRunError
from batch.training.dataset import NightDataset
from batch.variants import MODELS, Variant
from contract import columns
from contract.errors import OvernightError
from contract.logs import redact
from contract.manifest import Manifest

log = logging.getLogger("batch")

EXPECTED = (OvernightError, InterruptedRunError)
"""Errors whose message alone says why a run ended."""


@dataclass(frozen=True)
class NightOptions:
    """Options of a night: cutoff, number of users to score, and whether to publish what the gate refuses."""

    as_of: datetime | None = None
    limit_users: int | None = None
    force: bool = False


NORMAL = NightOptions()


def run_night(stores: Stores, variants: tuple[str, ...], options: NightOptions = NORMAL) -> list[Manifest]:
    """Build and publish each variant; return the manifests, those of refused runs included.

    Raises
    ------
    OvernightError
        A run failed. The live runs are unchanged.
    """
    with (
        # One thread for linear algebra: the order of sums must not depend on the machine. LightGBM uses all.
        threadpool_limits(1, user_api="blas"),
        stores.readable_errors(),
        lock.hold(stores.engine, stores.keys.prefix) as held,
        NightDataset(stores, options.as_of) as data,
    ):
        log.info("%s", stores.describe())
        stores.executor.check()
        ledger.create(stores.engine)
        stale_users.create(stores.engine)
        clean_up(stores)
        manifests = [_run_variant(stores, MODELS[name], data, options, held) for name in variants]
        held.check()
        _clean_up(stores, data, options, manifests)
        data.close()  # frees the memory that the refresh needs
        return manifests if options.as_of else refresh_after_night(stores, manifests)


def _run_variant(
    stores: Stores, variant: Variant, data: NightDataset, options: NightOptions, held: lock.Lock
) -> Manifest:
    """Build one variant and publish it, unless the gate refuses; on an error, remove what was written."""
    run = ledger.start(stores, variant.name, datetime.now(UTC))
    log.info("run %s started", run.run_id)
    try:
        with stores.readable_errors():
            manifest, refusal = _build(stores, run, variant, data, options)
            held.check()
            ledger.record_built(stores, run, manifest)
            if refusal and not options.force:
                log.error("run %s is refused: %s", run.run_id, refusal)
                manifest = go_live.refuse(stores, run, manifest, reason=refusal)
            else:
                _record_actions(stores, run, data, manifest)
                reason = f"forced past the gate: {refusal}" if refusal else None
                manifest = go_live.go_live(stores, run, manifest, reason=reason)
    except BaseException as error:
        go_live.abandon(stores, run, reason=_describe_error(stores, error))
        raise
    log.info("run %s is %s", run.run_id, manifest.state)
    return manifest


def _build(
    stores: Stores, run: Run, variant: Variant, data: NightDataset, options: NightOptions
) -> tuple[Manifest, str | None]:
    """Build one run beside the live one; return its manifest, and why the gate refuses it."""
    stages = Stages()
    learner = Learner.create(variant, stores.settings, run.run_id)
    shared_keys.write_help(stores.redis, stores.keys)  # a Redis that does not take writes fails here
    write_back(stores, datetime.now(UTC))
    blocking.write_back(stores)
    _check_segments(stores)

    dataset = data.load(run.run_id, stages)
    users = min(options.limit_users or len(dataset.network.users), len(dataset.network.users))
    choice = learner.choose_recipe(dataset, stages)
    holdout = learner.evaluate(dataset, choice.recipe, stages)
    model = learner.train(dataset, choice.recipe, stages)
    written = write_run(stores, run, model, dataset, users=users, stages=stages)
    similar = write_similar_posts(stores, run, model, dataset, stages=stages)
    verdict = gate.check(stores, run, dataset, holdout, written.stats, users=users, stages=stages)
    manifest = make_manifest(
        stores.redis, run, dataset, learner=learner, choice=choice, holdout=holdout, model=model,
        written=written, similar=similar,
        gate=verdict.verdicts, forced=options.force and verdict.refusal is not None, stages=stages,
    )  # fmt: skip
    write_run_page(stores, manifest, dataset, model, rows=holdout.rows, stages=stages)
    return manifest, verdict.refusal


def _check_segments(stores: Stores) -> None:
    """Check the column of OVERNIGHT_POPULAR_BY before any row is read."""
    if name := stores.settings.feed.popular_by:
        with stores.engine.connect() as connection:
            views = check_views(connection)
        check_attribute(views.users, name, stores.settings.night.ignore_columns)


def _record_actions(stores: Stores, run: Run, data: NightDataset, manifest: Manifest) -> None:
    """Store which actions the run knows, so that a refresh finds the users who act later."""
    cutoff = manifest.require_cutoff()
    known = fingerprints(data.store, cutoff - stale_users.LATE, cutoff)
    with stores.engine.begin() as connection:
        stale_users.record_night(connection, run.run_id, known)


def _clean_up(stores: Stores, data: NightDataset, options: NightOptions, manifests: list[Manifest]) -> None:
    """Move exposures to Postgres; remove runs that are not kept, and texts of posts that no longer exist."""
    drain(stores, datetime.now(UTC))
    clean_up(stores)
    if data.posts is not None and options.as_of is None:  # as of an earlier time, newer posts are not loaded
        shared_keys.remove_old_texts(stores.redis, stores.keys, data.posts)
        clear_gone_posts(stores, {manifest.run_id for manifest in manifests})
        remove_stale_vectors(stores.engine, data.posts[columns.TEXT])


def _describe_error(stores: Stores, error: BaseException) -> str:
    """Describe in one line, without secrets, why a run ended."""
    reason = str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"
    return redact(" ".join(reason.split()), stores.settings.secrets())
