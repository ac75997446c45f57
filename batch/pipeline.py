"""The night, in order. Each step lives in the module it is called from."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import redis
import sqlalchemy as sa
from threadpoolctl import threadpool_limits

from batch import postgres, redis_client
from batch.arrays import Int64s
from batch.context import Stores
from batch.evaluation.choose_recipe import choose_recipe
from batch.evaluation.holdout import HoldoutEvaluation, evaluate_holdout
from batch.evaluation.recipe_choice import RecipeChoice
from batch.evaluation.scored_rows import ScoredRows
from batch.experiment.exposures import drain
from batch.experiment.split import write_back
from batch.features.embeddings import remove_stale_vectors
from batch.gate import rules
from batch.gate.collect import measure
from batch.gate.compare_with_live import JUDGED_MODEL
from batch.gate.list_stats import ListStats
from batch.gate.outcomes import NOT_COMPARED, REFUSED, outcome_of
from batch.loading.combined_store import fingerprints
from batch.loading.interaction_store import share_store, store_identity
from batch.loading.pull import PullResult, pull
from batch.loading.work_folder import store_folder
from batch.progress import Stages, TimedIterator, track
from batch.publishing import go_live, shared_keys
from batch.publishing.go_live import KNOWN_USERS
from batch.publishing.memory import Forecast, before_writing
from batch.publishing.prune import tidy
from batch.publishing.write import Written, verify, write_lists, write_similar
from batch.refresh import stale_users
from batch.refresh.refresh import Refresh, refresh
from batch.reports.files import report_path, write_report
from batch.reports.run_page import compute_curves, render_run_page
from batch.reports.user_examples import read_user_examples
from batch.runs import ledger, lock
from batch.runs.ledger import Run, State
from batch.scoring.score import lists_of_all
from batch.signals import InterruptedRunError
from batch.similar_posts import build_post_vectors, find_similar_posts
from batch.training.dataset import Dataset, load_dataset
from batch.training.fit import fit
from batch.training.model import Model
from batch.training.parameters import load_parameters
from batch.training.recipe import Recipe
from batch.training.refresh_state import RefreshState
from batch.variants import MODELS, Variant
from contract import columns
from contract.errors import OvernightError
from contract.keys import Keys
from contract.logs import redact
from contract.settings import Settings

log = logging.getLogger("batch")

EXPECTED = (OvernightError, InterruptedRunError)
"""What tells in its message alone why a run ended."""


@dataclass
class Night:
    """What a night works with; connections are opened by the entry point.

    `force` publishes what the gate refuses; `pulled` and `gathered` are what the variants share.
    """

    settings: Settings
    engine: sa.Engine
    redis: redis.Redis
    actor: str
    as_of: datetime | None = None
    limit_users: int | None = None
    force: bool = False
    pulled: PullResult | None = field(default=None, init=False)
    dataset: Dataset | None = field(default=None, init=False)
    open_until_the_end: ExitStack = field(default_factory=ExitStack, init=False)

    @property
    def keys(self) -> Keys:
        """Key names under the prefix of the settings."""
        return Keys(self.settings.stores.key_prefix)


def run_night(night: Night, variants: tuple[str, ...]) -> list[dict[str, Any]]:
    """Build and publish each variant; return their manifests, those of refused ones too.

    Raises
    ------
    OvernightError
        Something is wrong; what was live before is live still.
    """
    # One thread for linear algebra: more would sum in another order on another machine. LightGBM uses all.
    one_thread = threadpool_limits(1, user_api="blas")
    lone = lock.held(night.engine, night.settings.stores.key_prefix)
    with one_thread, _readable_errors(night.settings), lone as held, night.open_until_the_end:
        ledger.create(night.engine)
        stale_users.create(night.engine)
        tidy(night.engine, night.redis, night.settings, night.actor)
        manifests = [_run_variant(night, MODELS[name], held) for name in variants]
        held.check()
        _clear_away(night)
        night.open_until_the_end.close()
        night.pulled = night.dataset = None  # frees the memory that the refresh needs
        _catch_up(night, manifests)
        return manifests


def _catch_up(night: Night, manifests: list[dict[str, Any]]) -> None:
    """Refresh users who acted since the night's snapshot; the runs' records say how many.

    What goes wrong here is left to the next refresh: the runs are live. Runs
    as of an earlier time are left as they were asked for.
    """
    went_live = {m["variant"]: m for m in manifests if m["state"] == State.LIVE}
    if not went_live or night.as_of is not None:
        return
    try:
        with _readable_errors(night.settings):
            done = refresh(Refresh(night.settings, night.engine, night.redis), tuple(went_live))
    except OvernightError as error:
        log.warning("users who acted during the night are left to the next refresh: %s", error)
        return
    for record in done:
        manifest = went_live[record["variant"]]
        if record["run_id"] == manifest["run_id"]:
            caught_up = {
                "users": record["users"],
                "new_users": record["new_users"],
                "stages": record["stages"],
            }
            manifest["caught_up"] = caught_up
            ledger.amend_manifest(night.engine, record["run_id"], {"caught_up": caught_up})
            go_live.amend_manifest(night.redis, night.keys, record["run_id"], {"caught_up": caught_up})
            log.info("run %s: %d users acted since the night's snapshot", record["run_id"], record["users"])


def _run_variant(night: Night, variant: Variant, held: lock.Lock) -> dict[str, Any]:
    now, prefix = datetime.now(UTC), night.settings.stores.key_prefix
    run = ledger.start(night.engine, variant.name, now, night.actor, prefix)
    log.info("run %s started", run.run_id)
    try:
        with _readable_errors(night.settings):
            manifest = _build(night, run, variant)
            held.check()
            ledger.note_built(night.engine, run, datetime.now(UTC), night.actor, manifest)
            _publish_or_refuse(night, run, manifest)
    except BaseException as error:
        reason = _reason(night.settings, error)
        go_live.abandon(night.engine, night.redis, night.settings, run, reason, night.actor)
        raise
    log.info("run %s is %s", run.run_id, manifest["state"])
    return manifest


def _publish_or_refuse(night: Night, run: Run, manifest: dict[str, Any]) -> None:
    places = (night.engine, night.redis, night.keys, run, manifest, night.actor)
    against = rules.refusal(manifest["gate"])
    if against and not night.force:
        log.error("run %s is refused: %s", run.run_id, against)
        go_live.refuse(*places, against)
    else:
        _note_actions(night, run, manifest)
        go_live.go_live(*places, f"forced past the gate: {against}" if against else None)


def _note_actions(night: Night, run: Run, manifest: dict[str, Any]) -> None:
    """Store which actions the run knows, so that a refresh finds the users who act later."""
    if night.pulled is not None:
        with night.engine.begin() as connection:
            cutoff = datetime.fromisoformat(manifest["cutoff"])
            marks = fingerprints(night.pulled.store, cutoff - stale_users.LATE, cutoff)
            stale_users.note_night(connection, run.run_id, marks)


def _build(night: Night, run: Run, variant: Variant) -> dict[str, Any]:
    """Load, learn, judge, score and write one run aside; return its manifest."""
    stages = Stages()
    tuned = load_parameters(variant.name, night.settings)
    shared_keys.write_help(night.redis, night.keys)  # a Redis that takes no writes fails here
    write_back(Stores(night.settings, night.engine, night.redis, night.actor), datetime.now(UTC))
    dataset = _load(night, run, stages)
    folder = Path(night.settings.night.model_dir) / run.run_id
    choice = _choose(night.settings, dataset, variant, tuned, stages)
    holdout = _evaluate(night.settings, folder, dataset, variant, choice.recipe, tuned, stages)
    metrics = holdout.record(dataset)
    model = _learn(night.settings, dataset, variant, choice.recipe, tuned, stages)
    model.save(folder, dataset.network)
    _keep_state(folder, dataset, model, stages)
    written, list_stats, forecast = _score_and_write(night, run, dataset, model, stages)
    similar = _find_similar(night, run, dataset, model, stages)
    manifest = {
        "run_id": run.run_id,
        "variant": variant.name,
        "state": str(State.BUILT),
        "cutoff": dataset.split.cutoff.isoformat(),
        "users": written.lists,
        "users_of_network": len(dataset.network.users),
        "posts": len(dataset.network.posts),
        "top_n": night.settings.night.top_n,
        "short_lists": written.short,
        "empty_lists": written.empty,
        "bytes_per_user": round(written.value_bytes / max(written.lists, 1), 1),
        "model_digest": model.digest,
        "tuned_parameters": tuned,
        "recipe": choice.record(),
        "checksum": written.checksum.hexdigest(),
        "similar_posts": similar.lists,
        "similar_checksum": similar.checksum.hexdigest(),
        "forecast_bytes": forecast.total_bytes,
        "publish": forecast.record(night.redis),
        "metrics": metrics,
        "left_out": dataset.left_out,
        "store": store_identity(dataset.now.store),
        KNOWN_USERS: list_stats.user_ids,
        **_gate(night, run, dataset, holdout, metrics, list_stats, stages),
        "stages": stages.rows,
    }
    _report(night, manifest, dataset, model, holdout.rows, stages)
    return manifest


def _load(night: Night, run: Run, stages: Stages) -> Dataset:
    """Copy the source and count it once a night; the variants share both."""
    folder = store_folder(night.settings) / run.run_id
    if night.pulled is None or night.dataset is None:
        clock = datetime.now(UTC)
        with stages.stage("pull", "interactions") as stats:
            pulled = pull(night.engine, night.settings, night.as_of or clock, folder)
            night.pulled = night.open_until_the_end.enter_context(pulled)
            stats |= {"interactions": night.pulled.store.interactions, **night.pulled.left_out}
            stats |= {"mib": night.pulled.store.mib}
        with stages.stage("count", "interactions") as stats:
            night.dataset = load_dataset(night.pulled, night.settings, night.engine, night.as_of)
            night.pulled.store.release()
            stats |= {"users": len(night.dataset.network.users), "posts": len(night.dataset.network.posts)}
            stats |= {
                "interactions": night.dataset.interactions,
                "likes": night.dataset.now.likes.posts.size,
            }
    else:
        share_store(night.pulled.store, folder)
    return night.dataset


def _choose(
    settings: Settings, dataset: Dataset, variant: Variant, tuned: dict[str, Any], stages: Stages
) -> RecipeChoice:
    """Choose what the variant learns, on data before the holdout."""
    with stages.stage("choose", "recipes") as stats:
        choice = choose_recipe(variant, dataset, settings, tuned)
        stats |= {"recipes": len(choice.candidates), "users": choice.users}
    return choice


def _evaluate(
    settings: Settings,
    folder: Path,
    dataset: Dataset,
    variant: Variant,
    recipe: Recipe,
    tuned: dict[str, Any],
    stages: Stages,
) -> HoldoutEvaluation:
    """Fit on the data before the holdout, evaluate on the holdout, and keep the model for later nights."""
    with stages.stage("fit", "windows") as stats:
        model = fit(variant, dataset, windows=dataset.training, recipe=recipe, settings=settings, tuned=tuned)
        stats |= {"windows": len(dataset.training)}
    with stages.stage("evaluate", "rows") as stats:
        holdout = evaluate_holdout(model, dataset, settings.night.threads)
        holdout.metrics.warn_if_insufficient()
        stats |= {"rows": holdout.metrics.rows}
    model.save(folder / JUDGED_MODEL, dataset.network)
    return holdout


def _learn(
    settings: Settings,
    dataset: Dataset,
    variant: Variant,
    recipe: Recipe,
    tuned: dict[str, Any],
    stages: Stages,
) -> Model:
    """Fit again on everything up to the cutoff."""
    with stages.stage("refit", "windows") as stats:
        stats |= {"windows": len(dataset.windows)}
        return fit(variant, dataset, windows=dataset.windows, recipe=recipe, settings=settings, tuned=tuned)


def _keep_state(folder: Path, dataset: Dataset, model: Model, stages: Stages) -> None:
    """Learn the factors as of the cutoff, and keep what refreshes take over from the night."""
    with stages.stage("refresh_state", "users") as stats:
        RefreshState.from_night(model, dataset.network, dataset.now).save(folder)
        stats |= {"users": len(dataset.network.users)}


def _score_and_write(
    night: Night, run: Run, dataset: Dataset, model: Model, stages: Stages
) -> tuple[Written, ListStats, Forecast]:
    """Score all users against all posts and write their lists under the run's own keys."""
    client, keys, settings = night.redis, night.keys, night.settings
    with stages.stage("score_and_write", "users") as stats:
        known = (dataset.network, dataset.now)
        tables, factors = model.tables(*known), model.factors(*known)
        users = min(night.limit_users or tables.user_ids.size, tables.user_ids.size)
        blocked = _excluded_rows(night, dataset)
        scored = lists_of_all(
            model.booster, tables, factors, dataset.now.likes, blocked, settings.night.top_n,
            users=users, budget_mib=settings.night.memory_budget_mib, threads=settings.night.threads,
        )  # fmt: skip
        chunks = TimedIterator(scored)
        lists, forecast = before_writing(
            client, keys, run.run_id, track(chunks, users, "score and write", "users"),
            dataset.network.posts, users=users, similar_n=settings.night.similar_n,
        )  # fmt: skip
        shared_keys.begin(client, keys, run.run_id)
        list_stats = ListStats(tables.post_ids.size, blocked, dataset.now.likes, settings.night.top_n)
        written = write_lists(client, keys, run.run_id, list_stats.through(lists), tables.post_ids)
        shared_keys.write_popular(
            client, keys, run.run_id, dataset.now, tables.post_ids, blocked, settings.night.top_n
        )
        shared_keys.write_texts(client, keys, dataset.network.posts)
        verify(client, written, users)
        stats |= {"users": written.lists, "pairs": users * tables.post_ids.size, "bytes": written.value_bytes}
        # Chunks are scored while others are written; this is what scoring took beyond that.
        stats["seconds_waited_for_scores"] = round(chunks.seconds, 3)
    return written, list_stats, forecast


def _excluded_rows(night: Night, dataset: Dataset) -> Int64s:
    """Return the rows of posts that no list may hold: blocked ones, and those that did not exist yet."""
    post_ids = dataset.network.posts.index.to_numpy(np.int64)
    return np.union1d(shared_keys.blocked_places(night.redis, night.keys, post_ids), dataset.hidden)


def _find_similar(night: Night, run: Run, dataset: Dataset, model: Model, stages: Stages) -> Written:
    """Write for each post the posts most like it, under the run's own keys; none if not asked for."""
    client, keys, n = night.redis, night.keys, night.settings.night.similar_n
    if n == 0:
        return Written()
    with stages.stage("similar", "posts") as stats:
        post_ids = dataset.network.posts.index.to_numpy("int64")
        blocked = _excluded_rows(night, dataset)
        found = find_similar_posts(build_post_vectors(model, dataset), post_ids, blocked, n)
        lists = track(found, post_ids.size, "similar posts", "posts")
        written = write_similar(client, keys, run.run_id, lists, post_ids)
        verify(client, written, post_ids.size)
        stats |= {"posts": written.lists, "bytes": written.value_bytes, "without": written.empty}
    return written


def _gate(
    night: Night,
    run: Run,
    dataset: Dataset,
    holdout: HoldoutEvaluation,
    metrics: dict[str, Any],
    list_stats: ListStats,
    stages: Stages,
) -> dict[str, Any]:
    """Hold what was written against the rules; return what the manifest keeps of that."""
    asked = min(night.limit_users or len(dataset.network.users), len(dataset.network.users))
    with stages.stage("gate", "rules") as stats:
        inputs = measure(
            night.engine, night.redis, night.settings, run, dataset, holdout.rows, holdout.ranked, metrics,
            list_stats, asked,
        )  # fmt: skip
        gate = [verdict.record() for verdict in rules.judge(inputs, night.settings.gate)]
        outcomes = [outcome_of(verdict) for verdict in gate]
        stats |= {"rules": len(gate), "refused": outcomes.count(REFUSED)}
        stats |= {"not_compared": outcomes.count(NOT_COMPARED)}
    return {"gate": gate, "forced": night.force and rules.refusal(gate) is not None}


def _report(
    night: Night, manifest: dict[str, Any], dataset: Dataset, model: Model, rows: ScoredRows, stages: Stages
) -> None:
    """Write the page that people look at; a disk that does not take it loses the page, not the night."""
    run_id = manifest["run_id"]
    path = report_path(night.settings, run_id)
    with stages.stage("report", "bytes") as stats:
        users = read_user_examples(
            Stores(night.settings, night.engine, night.redis, night.actor), run_id, dataset, manifest["users"]
        )
        page = render_run_page(manifest, dataset, model, compute_curves(rows), users)
        stats |= {"bytes": 0}
        try:
            stats |= {"bytes": write_report(path, page)}
        except OSError as error:
            log.warning("%s has no report: %s cannot be written: %s", run_id, path, error.strerror)


def _clear_away(night: Night) -> None:
    """Move exposures to Postgres; remove runs that are no longer kept, and texts of posts that are gone."""
    drain(Stores(night.settings, night.engine, night.redis, night.actor), datetime.now(UTC))
    tidy(night.engine, night.redis, night.settings, night.actor)
    if (
        night.dataset is not None and night.as_of is None
    ):  # as of an earlier time, newer posts were not loaded
        shared_keys.remove_old_texts(night.redis, night.keys, night.dataset.network.posts)
        remove_stale_vectors(night.engine, night.dataset.network.posts[columns.TEXT])


@contextmanager
def _readable_errors(settings: Settings) -> Iterator[None]:
    with postgres.readable_errors(settings), redis_client.readable_errors(settings):
        yield


def _reason(settings: Settings, error: BaseException) -> str:
    """Say in one line, without a secret, why a run ended."""
    told = str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"
    return redact(" ".join(told.split()), settings.secrets())
