"""What kind the scores of a list are: a recipe's name, or what a list that no model made counts."""

from __future__ import annotations

from collections.abc import Mapping

from contract.settings import RECIPE_NAMES

LIKES = "likes"
"""Of a popular list: the number of likes."""

SIMILARITY = "similarity"
"""Of a list of similar posts: the weighted mean of cosines, at most 1."""

FIRST_RECIPE = "liked-if-viewed"
"""What runs learnt whose manifest names no recipe: they were made before there was another."""


def recipe_of(manifest: Mapping[str, object]) -> str | None:
    """Return the name of the recipe that a run learnt; None if this release does not know it."""
    record = manifest.get("recipe", {"name": FIRST_RECIPE})
    name = record.get("name") if isinstance(record, Mapping) else None
    return str(name) if name in RECIPE_NAMES else None
