"""Chooses what a variant learns, by how the lists of each recipe rank a window before the holdout.

    validation = the last window before the holdout
    for each recipe that the network has examples for, the simplest first:
        fit on the windows before the validation, rank all posts as of its start
    take the first recipe
    for each further one:
        take it instead if its NDCG@10 is higher by more than so many standard errors, paired by user

One standard error for likes among all posts (the rule of Breiman et al., 1984,
which keeps the simpler of two that are alike): where posts are shown at random
the views are as good a teacher as the likes, and there are more of them. Two
for the ranking objective, which was behind on most networks and cutoffs that
were measured.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from batch.evaluation.catalogue_case import build_case, score_lists
from batch.evaluation.full_catalogue import FIRST, MAX_USERS, MIN_USERS, rank_by_model
from batch.evaluation.ranking_metrics import Floats
from batch.evaluation.recipe_choice import Candidate, RecipeChoice
from batch.loading.split import LARGE_INTERACTIONS
from batch.training.dataset import Gathered
from batch.training.fit import fit
from batch.training.recipe import LIKED, LIKED_IF_VIEWED, RANKED, RECIPES
from batch.variants import Variant
from contract.errors import ModelError
from contract.settings import AUTO_RECIPE, Settings

log = logging.getLogger("batch")

STANDARD_ERRORS = {LIKED: 1.0, RANKED: 2.0}
"""By how many a recipe must be better than those before it."""

MAX_ROWS = 500_000
"""Examples that each recipe is tried with."""


def choose_recipe(
    variant: Variant, gathered: Gathered, settings: Settings, tuned: Mapping[str, Any] | None = None
) -> RecipeChoice:
    """Choose what a variant learns; nothing after the start of the holdout is looked at.

    Parameters
    ----------
    tuned
        As in `fit`.

    Raises
    ------
    ModelError
        The setting asks for views, and there are none to learn from.
    """
    wanted = settings.recipe
    if wanted != AUTO_RECIPE:
        recipe = RECIPES[wanted]
        if recipe.from_views and not gathered.with_views:
            raise ModelError(
                f"OVERNIGHT_RECIPE={wanted} learns from views, and before the holdout the network logs none "
                f"that are liked beside others that are not; set it to {LIKED.name} or {AUTO_RECIPE}"
            )
        return RecipeChoice(recipe, "set by OVERNIGHT_RECIPE")
    recipes = [*([LIKED_IF_VIEWED] if gathered.with_views else []), LIKED, RANKED]
    *earlier, last = gathered.training
    case = build_case(gathered.network, last.history, last.later_likes, MAX_USERS, settings.seed)
    if not earlier or case.users.size < MIN_USERS:
        why = f"too little to choose by before the holdout: {case.users.size} users in one window"
        return RecipeChoice(recipes[0], why)
    if gathered.interactions >= LARGE_INTERACTIONS:  # each recipe would have factors of its own
        variant = replace(variant, with_factors=False)
    settings = replace(settings, training_rows=min(settings.training_rows, MAX_ROWS))
    values: list[Floats] = []
    tried: list[Candidate] = []
    for recipe in recipes:
        try:
            model = fit(variant, gathered, earlier, recipe, settings, tuned)
        except ModelError as error:
            log.info("recipe %s is left out: %s", recipe.name, error)
            continue
        lists = rank_by_model(model, gathered.network, last.history, case, settings.threads)
        values.append(score_lists(case, lists).values[FIRST])
        tried.append(Candidate(recipe, float(values[-1].mean()), *paired_difference(values[-1], values[0])))
    if not tried:
        return RecipeChoice(recipes[0], "no recipe could be tried before the holdout")
    best = 0
    for index in range(1, len(tried)):
        difference, standard_error = paired_difference(values[index], values[best])
        if difference > STANDARD_ERRORS[tried[index].recipe] * standard_error:
            best = index
    why = f"NDCG@10 {tried[best].ndcg_at_10:.4f} of {case.users.size} users before the holdout, " + ", ".join(
        f"{each.recipe.name} {each.ndcg_at_10:.4f}" for each in tried
    )
    validated = (last.history.cutoff, gathered.split.holdout_start)
    return RecipeChoice(tried[best].recipe, why, tuple(tried), validated, int(case.users.size))


def paired_difference(values: Floats, others: Floats) -> tuple[float, float]:
    """Return the mean difference of two rankers' figures, paired by user, and its standard error."""
    differences = values - others
    return float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(differences.size))
