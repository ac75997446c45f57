"""Describe a written run in its manifest."""

from __future__ import annotations

from typing import Any

import redis

from batch.evaluation.holdout import HoldoutEvaluation
from batch.evaluation.learner import Learner
from batch.evaluation.recipe_choice import RecipeChoice
from batch.loading.interaction_store import store_identity
from batch.progress import Stages
from batch.publishing.write import Written, WrittenRun
from batch.runs.ledger import Run, State
from batch.training.dataset import Dataset
from batch.training.model import Model
from contract.manifest import Manifest


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
    warnings: list[str],
    gate: list[dict[str, Any]],
    forced: bool,
    stages: Stages,
) -> Manifest:
    """Return the manifest of a run that is built; `stages` may get further rows."""
    users = written.users
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
        checksum=users.checksum.hexdigest(),
        similar_posts=similar.lists,
        similar_checksum=similar.checksum.hexdigest(),
        forecast_bytes=written.forecast.total_bytes,
        publish=written.forecast.record(client),
        metrics=holdout.record(dataset),
        left_out=dataset.left_out,
        store=store_identity(dataset.now.store),
        some_users=written.stats.some_users,
        warnings=warnings,
        gate=gate,
        forced=forced,
        stages=stages.rows,
    )
