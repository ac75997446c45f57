"""Chooses what a variant learns, by how the model of each recipe ranks a window before the holdout.

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
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from batch.arrays import Float64s
from batch.evaluation import PRIMARY_METRIC
from batch.evaluation.catalogue_case import build_case, score_lists
from batch.evaluation.full_catalogue import MAX_USERS, MIN_USERS, rank_by_model
from batch.evaluation.recipe_choice import Candidate, RecipeChoice
from batch.loading.split import LARGE_INTERACTIONS
from batch.training.dataset import Dataset
from batch.training.fit import fit
from batch.training.recipe import LIKED, LIKED_IF_VIEWED, RECIPES
from batch.variants import Variant
from contract.errors import ModelError
from contract.settings import AUTO_RECIPE, Settings

log = logging.getLogger("batch")

MAX_ROWS = 500_000
"""Maximum number of examples to try a recipe with."""


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
        return RecipeChoice(LIKED, "the network logs no views to learn from")
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
        lists = rank_by_model(model, dataset.network, last.history, case, settings.night.threads)
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
