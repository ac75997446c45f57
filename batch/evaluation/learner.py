"""A variant that learns: choose its recipe, evaluate it on the holdout, train it on everything.

The recipe is chosen by how the model of each recipe ranks a window before the holdout:

    validation = the last window before the holdout
    for liked-if-viewed, then liked:
        fit on the windows before the validation, rank all posts as of its start
    choose liked if its NDCG@10 is higher by more than one standard error, paired by user

The one-standard-error rule (Breiman et al., 1984) keeps the simpler of two
similar models. If a network shows posts at random, views teach the same order
as likes, and there are more of them. A network without views learns `liked`.
LightGBM's ranking objective is not tried: in the measured networks it was
better in the validation by many standard errors, and not better afterwards,
because one window has few popular posts and their order decides. It can be
chosen by a setting.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from batch.arrays import Float64s
from batch.evaluation import PRIMARY_METRIC
from batch.evaluation.catalogue_case import build_case, score_lists
from batch.evaluation.full_catalogue import MAX_USERS, MIN_USERS, rank_by_model
from batch.evaluation.holdout import HoldoutEvaluation, evaluate_holdout
from batch.evaluation.recipe_choice import Candidate, RecipeChoice
from batch.evaluation.rule_cost import measure_rules
from batch.loading.split import LARGE_INTERACTIONS
from batch.progress import Stages
from batch.training.dataset import Dataset, Window
from batch.training.fit import fit
from batch.training.model import Model
from batch.training.parameters import LIKED, LIKED_IF_VIEWED, RECIPES, Recipe, load_parameters
from batch.training.refresh_state import RefreshState
from batch.variants import Variant
from contract.errors import ModelError
from contract.settings import AUTO_RECIPE, Settings

log = logging.getLogger("batch")

MAX_ROWS = 500_000
"""Maximum number of examples to try a recipe with."""

NO_VIEWS = "the network logs no views to learn from"
ONE_LABEL = "all logged views are liked, or none is: they do not tell what is liked if viewed"

HOLDOUT_MODEL = "judged"
"""Subfolder of a run's folder with the model that was fit before the holdout."""


@dataclass(frozen=True)
class Learner:
    """A variant with the parameters that it learns with.

    Attributes
    ----------
    tuned
        Parameters that `tune` keeps for the variant; they override the defaults.
    folder
        The run's folder for models.
    """

    variant: Variant
    settings: Settings
    tuned: Mapping[str, Any]
    folder: Path

    @classmethod
    def create(cls, variant: Variant, settings: Settings, run_id: str) -> Learner:
        """Read the variant's tuned parameters.

        Raises
        ------
        ParametersError
            The file of tuned parameters cannot be used.
        """
        folder = Path(settings.night.model_dir) / run_id
        return cls(variant, settings, load_parameters(variant.name, settings), folder)

    def choose_recipe(self, dataset: Dataset, stages: Stages) -> RecipeChoice:
        """Choose what the variant learns, on data before the holdout."""
        with stages.stage("choose", "recipes") as row:
            choice = choose_recipe(self.variant, dataset, self.settings, self.tuned)
            row |= {"recipes": len(choice.candidates), "users": choice.users}
        return choice

    def evaluate(self, dataset: Dataset, recipe: Recipe, stages: Stages) -> HoldoutEvaluation:
        """Fit before the holdout, evaluate on the holdout, and save the model for later nights."""
        with stages.stage("fit", "windows") as row:
            model = self._fit(dataset, dataset.training, recipe)
            row |= {"windows": len(dataset.training)}
        with stages.stage("evaluate", "rows") as row:
            holdout = evaluate_holdout(model, dataset, self.settings)
            holdout.metrics.warn_if_insufficient()
            costs = measure_rules(model, dataset, holdout.ranked.case, self.settings)
            row |= {"rows": holdout.metrics.rows}
        model.save(self.folder / HOLDOUT_MODEL, dataset.network)
        return replace(holdout, rule_costs=costs)

    def train(self, dataset: Dataset, recipe: Recipe, stages: Stages) -> Model:
        """Fit on everything up to the cutoff; save the model and the state that refreshes need."""
        with stages.stage("refit", "windows") as row:
            model = self._fit(dataset, dataset.windows, recipe)
            row |= {"windows": len(dataset.windows)}
        model.save(self.folder, dataset.network)
        with stages.stage("refresh_state", "users") as row:
            RefreshState.from_night(model, dataset.network, dataset.now).save(self.folder)
            row |= {"users": len(dataset.network.users)}
        return model

    def _fit(self, dataset: Dataset, windows: Sequence[Window], recipe: Recipe) -> Model:
        settings, tuned = self.settings, self.tuned
        return fit(self.variant, dataset, windows=windows, recipe=recipe, settings=settings, tuned=tuned)


def choose_recipe(
    variant: Variant, dataset: Dataset, settings: Settings, tuned: Mapping[str, Any] | None = None
) -> RecipeChoice:
    """Choose what a variant learns, and log it; data after the start of the holdout are not used.

    Parameters
    ----------
    tuned
        As in `fit`.

    Raises
    ------
    ModelError
        The setting asks for a recipe that learns from views, and there are none to learn from.
    """
    choice = _choose(variant, dataset, settings, tuned)
    log.info("%s learns %s: %s", variant.name, choice.recipe.name, choice.why)
    return choice


def _why_not_views(dataset: Dataset) -> str:
    """Return why a model cannot learn from the views."""
    if dataset.split.why:
        return f"too few views: {dataset.split.why}"
    return ONE_LABEL if any(each.views.viewed.any() for each in dataset.training) else NO_VIEWS


def _choose(
    variant: Variant, dataset: Dataset, settings: Settings, tuned: Mapping[str, Any] | None
) -> RecipeChoice:
    wanted = settings.night.recipe
    if wanted != AUTO_RECIPE:
        recipe = RECIPES[wanted]
        if recipe.from_views and not dataset.with_views:
            raise ModelError(
                f"OVERNIGHT_RECIPE={wanted} learns from views, but the network's views before the holdout "
                f"do not include both liked and other ones; set it to {LIKED.name} or {AUTO_RECIPE}"
            )
        return RecipeChoice(recipe, "set by OVERNIGHT_RECIPE")
    if not dataset.with_views:
        return RecipeChoice(LIKED, _why_not_views(dataset))
    *earlier, last = dataset.training
    case = build_case(dataset.network, last.history, last.later_likes, MAX_USERS, settings.night.seed)
    if not earlier or case.users.size < MIN_USERS:
        why = f"too little data before the holdout to choose: {case.users.size} users in one window"
        return RecipeChoice(LIKED_IF_VIEWED, why)
    if dataset.interactions >= LARGE_INTERACTIONS:  # each recipe would fit its own factors
        variant = replace(variant, with_factors=False)
    settings = settings.replace(training_rows=min(settings.night.training_rows, MAX_ROWS))
    values: list[Float64s] = []
    candidates: list[Candidate] = []
    for recipe in (LIKED_IF_VIEWED, LIKED):
        try:
            model = fit(variant, dataset, windows=earlier, recipe=recipe, settings=settings, tuned=tuned)
        except ModelError as reason:
            log.info("recipe %s is left out: %s", recipe.name, reason)
            continue
        lists = rank_by_model(model, dataset.network, last.history, case, settings)
        values.append(score_lists(case, lists).values[PRIMARY_METRIC])
        difference, error = paired_difference(values[-1], values[0])
        candidates.append(Candidate(recipe, float(values[-1].mean()), difference, error))
    validated = (last.history.cutoff, dataset.split.holdout_start)
    if len(candidates) < 2:
        recipe = candidates[0].recipe if candidates else LIKED_IF_VIEWED
        why = "no other recipe could be tried before the holdout"
        return RecipeChoice(recipe, why, tuple(candidates), validated, int(case.users.size))
    views, likes = candidates
    better = likes.difference > likes.standard_error
    why = (
        f"NDCG@10 of {likes.recipe.name} minus that of {views.recipe.name} is {likes.difference:+.4f}, "
        f"{'more' if better else 'not more'} than one standard error ({likes.standard_error:.4f})"
    )
    chosen = likes.recipe if better else views.recipe
    return RecipeChoice(chosen, why, tuple(candidates), validated, int(case.users.size))


def paired_difference(values: Float64s, others: Float64s) -> tuple[float, float]:
    """Return the mean of `values - others`, paired by user, and its standard error."""
    differences = values - others
    return float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(differences.size))
