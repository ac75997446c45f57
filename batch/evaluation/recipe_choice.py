"""The recipe of a run and why it was chosen, as its manifest keeps it and as it is printed.

Imports neither pandas nor LightGBM, so that commands about runs start quickly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from batch.evaluation.ranking_metrics import round_or_none
from batch.formatting import table
from batch.training.parameters import RECIPES, Recipe
from contract.score_kind import FIRST_RECIPE, LIKES

MEANING_OF_LIKES = "number of likes"


@dataclass(frozen=True)
class Candidate:
    """One recipe that was tried: mean NDCG@10, and its difference to the first with standard error."""

    recipe: Recipe
    ndcg_at_10: float
    difference: float
    standard_error: float

    def record(self) -> dict[str, Any]:
        """Return the JSON object for a manifest."""
        return {
            "recipe": self.recipe.name,
            "ndcg_at_10": round_or_none(self.ndcg_at_10),
            "difference": round_or_none(self.difference),
            "standard_error": round_or_none(self.standard_error),
        }


@dataclass(frozen=True)
class RecipeChoice:
    """The recipe of a variant, and why.

    Attributes
    ----------
    candidates
        The recipes that were tried, in order; empty if there was no choice.
    validated
        Start and end of the likes that were ranked; None if there was no choice.
    users
        Number of users whose likes were ranked.
    """

    recipe: Recipe
    why: str
    candidates: tuple[Candidate, ...] = ()
    validated: tuple[datetime, datetime] | None = None
    users: int = 0

    def record(self) -> dict[str, Any]:
        """Return the JSON object for a manifest."""
        when = self.validated
        return {
            "name": self.recipe.name,
            "objective": self.recipe.objective,
            "negatives_per_like": self.recipe.negatives_per_like,
            "score_meaning": self.recipe.score_meaning,
            "why": self.why,
            "candidates": [candidate.record() for candidate in self.candidates],
            "validated": None if when is None else [time.isoformat() for time in when],
            "users": self.users,
        }


def recipe_record(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of a run as `RecipeChoice.record` writes it.

    Manifests of earlier releases lack it: there was one recipe only.
    """
    record: dict[str, Any] | None = manifest.get("recipe")
    return record or RecipeChoice(RECIPES[FIRST_RECIPE], "the only recipe when the run was made").record()


def score_kind_of(manifest: Mapping[str, Any], *, personal: bool) -> tuple[str, str]:
    """Return the kind of the scores in a run's personal or popular lists, and their meaning."""
    if not personal:
        return LIKES, MEANING_OF_LIKES
    record = recipe_record(manifest)
    return record["name"], record["score_meaning"]


def describe_examples(record: Mapping[str, Any]) -> str:
    """Describe the examples that a recipe learns from, and the objective."""
    negatives = record["negatives_per_like"]
    examples = "logged views" if negatives is None else f"likes, each with {negatives} drawn posts"
    return f"{examples}; objective {record['objective']}"


def render(record: Mapping[str, Any]) -> str:
    """Render the recipe of a run: one line, and a table of the candidates if there was a choice."""
    candidates = record["candidates"]
    why = "" if candidates else f" ({record['why']})"
    recipe = f"recipe {record['name']}{why}: {describe_examples(record)}; score: {record['score_meaning']}"
    if not candidates:
        return recipe
    since, until = record["validated"]
    basis = f"chosen before the holdout, by the likes of {record['users']} users from {since} to {until}"
    head = ["recipe", "ndcg@10", f"minus {candidates[0]['recipe']}", "standard error"]
    rows: list[list[str | None]] = [
        [
            each["recipe"],
            _format(each["ndcg_at_10"], ".4f"),
            None if index == 0 else _format(each["difference"], "+.4f"),
            None if index == 0 else _format(each["standard_error"], ".4f"),
        ]
        for index, each in enumerate(candidates)
    ]
    return "\n".join([recipe, f"{basis}: {record['why']}", table(head, rows)])


def _format(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)
