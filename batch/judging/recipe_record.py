"""What a run learnt and why, as its manifest keeps it and as it is printed.

Loads nothing that learns: operators look at runs by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batch.layout import table
from batch.learning.recipe import RECIPES
from contract.score_kind import FIRST_RECIPE, LIKES

MEANING_OF_LIKES = "number of likes"


def recipe_record(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of a run as `RecipeChoice.record` writes it.

    Manifests of earlier releases have none; their runs learnt the only recipe there was.
    """
    kept: dict[str, Any] | None = manifest.get("recipe")
    if kept is not None:
        return kept
    recipe = RECIPES[FIRST_RECIPE]
    return {
        "name": recipe.name,
        "objective": recipe.objective,
        "negatives_per_like": recipe.negatives_per_like,
        "score_meaning": recipe.score_meaning,
        "why": "the only recipe when the run was made",
        "candidates": [],
        "validated": None,
        "users": 0,
    }


def score_kind_of(manifest: Mapping[str, Any], *, personal: bool) -> tuple[str, str]:
    """Return what kind the scores of a run's personal or popular list are, and what they mean."""
    if not personal:
        return LIKES, MEANING_OF_LIKES
    record = recipe_record(manifest)
    return record["name"], record["score_meaning"]


def describe_examples(record: Mapping[str, Any]) -> str:
    """Say which examples a recipe learns from, and by which objective of LightGBM."""
    negatives = record["negatives_per_like"]
    examples = "logged views" if negatives is None else f"likes, each beside {negatives} drawn posts"
    return f"{examples}; objective {record['objective']}"


def render(record: Mapping[str, Any]) -> str:
    """Render what a run learnt: one line, or the candidates as well where there was a choice."""
    candidates = record["candidates"]
    why = "" if candidates else f" ({record['why']})"
    learnt = f"recipe {record['name']}{why}: {describe_examples(record)}; score: {record['score_meaning']}"
    if not candidates:
        return learnt
    since, until = record["validated"]
    judged = f"chosen before the holdout, by the likes of {record['users']} users from {since} to {until}"
    head = ["recipe", "ndcg@10", f"less {candidates[0]['recipe']}", "standard error"]
    rows: list[list[str | None]] = [
        [
            each["recipe"],
            _written(each["ndcg_at_10"], ".4f"),
            None if index == 0 else _written(each["difference"], "+.4f"),
            None if index == 0 else _written(each["standard_error"], ".4f"),
        ]
        for index, each in enumerate(candidates)
    ]
    return "\n".join([learnt, f"{judged}: {record['why']}", table(head, rows)])


def _written(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)
