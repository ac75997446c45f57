"""Where the posts of an answer come from, and what kind of scores they have.

The kind of scores of a model's list is the name of the model's recipe.
"""

from __future__ import annotations

from collections.abc import Mapping

from contract.settings import RECIPE_NAMES

PERSONAL, POPULAR = "personal", "popular"
"""Sources of an answer: the user's own list, or the popular list of the run."""

LIKES = "likes"
"""Scores of a popular list: the number of likes."""

SIMILARITY = "similarity"
"""Scores of a list of similar posts: the weighted mean of cosines, at most 1."""

FIRST_RECIPE = "liked-if-viewed"
"""Recipe of a run whose manifest has no recipe: earlier releases had only this one."""


def recipe_of(manifest: Mapping[str, object]) -> str | None:
    """Return the name of the recipe of a run; None if this release does not know it."""
    record = manifest.get("recipe", {"name": FIRST_RECIPE})
    name = record.get("name") if isinstance(record, Mapping) else None
    return str(name) if name in RECIPE_NAMES else None
