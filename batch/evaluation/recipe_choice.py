"""What a run learnt and why, as its manifest keeps it and as it is printed.

Loads nothing that learns: operators look at runs by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from batch.evaluation.ranking_metrics import rounded
from batch.formatting import table
from batch.training.recipe import RECIPES, Recipe
from contract.score_kind import FIRST_RECIPE, LIKES

MEANING_OF_LIKES = "number of likes"


@dataclass(frozen=True)
class Candidate:
    """One recipe that was tried: mean NDCG@10, and the standard error of its difference to the first."""

    recipe: Recipe
    ndcg_at_10: float
    difference: float
    standard_error: float

    def record(self) -> dict[str, Any]:
        """Return what a manifest keeps."""
        return {
            "recipe": self.recipe.name,
            "ndcg_at_10": rounded(self.ndcg_at_10),
            "difference": rounded(self.difference),
            "standard_error": rounded(self.standard_error),
        }


@dataclass(frozen=True)
class RecipeChoice:
    """The recipe of a variant, and why.

    Attributes
    ----------
    candidates
        What was tried, in order; none if there was no choice.
    validated
        Between which times likes were ranked; None if there was no choice.
    users
        How many users were judged.
    """

    recipe: Recipe
    why: str
    candidates: tuple[Candidate, ...] = ()
    validated: tuple[datetime, datetime] | None = None
    users: int = 0

    def record(self) -> dict[str, Any]:
        """Return what a manifest keeps."""
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

    Manifests of earlier releases have none; their runs learnt the only recipe there was.
    """
    kept: dict[str, Any] | None = manifest.get("recipe")
    return kept or RecipeChoice(RECIPES[FIRST_RECIPE], "the only recipe when the run was made").record()


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
