"""Recipes: what a model learns to predict, from which examples, by which objective.

A list ranks all posts, so a model must predict which of *all* posts a user will
like. If the network shows posts at random, the viewed posts are a fair sample
of all posts: the probability of a like given a view gives the same order, from
more rows. If people choose what they open, it does not: a post they open and do
not like is still closer to their taste than a post they never open. Which of
the two holds is measured on each network, see batch/evaluation/choose_recipe.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """What to learn, from which examples.

    Attributes
    ----------
    name
        As in the setting, in records and in reports.
    from_views
        Whether the examples are the logged views, liked or not. Otherwise they
        are likes, and posts drawn uniformly from all posts that existed.
    objective
        LightGBM's parameter.
    negatives_per_like
        Posts drawn for each like; None for views.
    factor_negatives
        The same for the factors. More than 8 cost time and were no better.
    max_bin
        LightGBM's parameter: number of bins of a feature, with equally many rows
        each. With uniformly drawn posts, few rows are of the popular posts that
        lists consist of; 255 bins would not separate them.
    score_meaning
        Meaning of a score, as text.
    """

    name: str
    from_views: bool
    objective: str
    negatives_per_like: int | None
    factor_negatives: int | None
    max_bin: int
    score_meaning: str


LIKED_IF_VIEWED = Recipe(
    name="liked-if-viewed",
    from_views=True,
    objective="binary",
    negatives_per_like=None,
    factor_negatives=None,
    max_bin=255,
    score_meaning="log-odds that the user likes the post when it is viewed",
)
LIKED = Recipe(
    name="liked",
    from_views=False,
    objective="binary",
    negatives_per_like=30,
    factor_negatives=8,
    max_bin=2000,
    score_meaning="log-odds that the post is one the user likes, among 30 posts drawn for each like",
)
RANKED = Recipe(
    name="ranked",
    from_views=False,
    objective="lambdarank",
    negatives_per_like=8,
    factor_negatives=8,
    max_bin=2000,
    score_meaning="ranking score; only the order of one user's posts has a meaning",
)

RECIPES = {recipe.name: recipe for recipe in (LIKED_IF_VIEWED, LIKED, RANKED)}
