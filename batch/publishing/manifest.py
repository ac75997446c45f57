"""Describe a written run in its manifest."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import numpy as np
import redis

from batch.evaluation.holdout import HoldoutEvaluation
from batch.evaluation.learner import Learner
from batch.evaluation.recipe_choice import RecipeChoice
from batch.ids import Ids
from batch.loading.interaction_store import store_identity
from batch.progress import Stages
from batch.publishing.list_stats import ListStats
from batch.publishing.write import WrittenRun
from batch.publishing.written import Written
from batch.runs.ledger import Run, State
from batch.training.dataset import Dataset
from batch.training.model import Model
from contract.manifest import Manifest
from contract.settings import Settings

log = logging.getLogger("batch")

MAX_SOME_USERS = 10
"""Users that are named."""


def make_manifest(
    client: redis.Redis,
    run: Run,
    dataset: Dataset,
    *,
    learner: Learner,
    choice: RecipeChoice,
    holdout: HoldoutEvaluation,
    model: Model,
    written: WrittenRun,
    similar: Written,
    gate: list[dict[str, Any]],
    forced: bool,
    stages: Stages,
) -> Manifest:
    """Return the manifest of a run that is built; `stages` may get further rows."""
    users, feed = written.users, learner.settings.feed
    weighted_views = dataset.weighted_views if model.recipe.from_views else 0
    return Manifest(
        run_id=run.run_id,
        variant=run.variant,
        state=str(State.BUILT),
        cutoff=dataset.split.cutoff,
        users=users.lists,
        users_of_network=len(dataset.network.users),
        posts=len(dataset.network.posts),
        top_n=learner.settings.night.top_n,
        short_lists=users.short,
        empty_lists=users.empty,
        bytes_per_user=round(users.value_bytes / max(users.lists, 1), 1),
        model_digest=model.digest,
        tuned_parameters=dict(learner.tuned),
        recipe=choice.record(),
        checksum=users.checksum,
        similar_posts=similar.lists,
        similar_checksum=similar.checksum,
        forecast_bytes=written.forecast.total_bytes,
        publish=written.forecast.record(client),
        metrics=holdout.record(dataset),
        left_out=dataset.left_out,
        left_out_of_lists=written.left_out,
        first_fives=_name_first_fives(written.stats, dataset.network.post_ids),
        feed=asdict(feed),
        topics=written.topics,
        explored=written.explored,
        weighted_views=weighted_views if weighted_views or feed.explore_places else None,
        popular_by=feed.popular_by or None,
        segments=written.segments or None,
        store=store_identity(dataset.now.store),
        ids=dataset.network.kinds,
        some_users=_some_ids(dataset.network.user_ids[: users.lists]),
        warnings=_warn(run, dataset, model, written.stats, learner.settings),
        gate=gate,
        forced=forced,
        stages=stages.rows,
    )


def _some_ids(user_ids: Ids) -> list[Any]:
    """Return some ids, evenly spaced, the first and the last among them."""
    rows = np.linspace(0, user_ids.size - 1, min(MAX_SOME_USERS, user_ids.size)).astype(np.int64)
    found: list[Any] = user_ids[rows].tolist()
    return found


def _name_first_fives(stats: ListStats, post_ids: Ids) -> list[list[Any]]:
    rows = [row for row, _ in stats.first_fives]
    return [
        [post_id, lists]
        for post_id, (_, lists) in zip(post_ids[rows].tolist(), stats.first_fives, strict=True)
    ]


def _warn(run: Run, dataset: Dataset, model: Model, stats: ListStats, settings: Settings) -> list[str]:
    """Log and return what an operator must know about a run that is whole."""
    warnings = [*dataset.warnings, *dataset.split.warnings]
    if model.learnt_nothing:
        order = "by the collaborative factors alone" if model.variant.with_factors else "by likes alone"
        warnings.append(
            f"the forest has no split: it learnt nothing from the examples. Lists are ordered {order}. "
            "Wait for more views and likes, or check that both are logged"
        )
    if stats.lists > 1 and stats.posts > 1 and stats.same_order:
        warnings.append(
            f"all {stats.lists} lists have the posts in the same order, apart from liked ones: "
            "the model tells no user from another"
        )
    if settings.feed.explore_places and not settings.experiment.exposures:
        warnings.append(
            "OVERNIGHT_EXPLORE_PLACES is set but OVERNIGHT_EXPOSURES is off: nothing is learnt from explored "
            "places, because nobody records who is shown which. Lists are not affected. "
            "Set OVERNIGHT_EXPOSURES=on, for serving too"
        )
    for warning in warnings:
        log.warning("run %s: %s", run.run_id, warning)
    return warnings
