"""The period that trials are scored on, and the comparison of two models on it.

A period is the holdout of a dataset. Models are trained on the windows before
it. They rank the full catalogue for the users who, in the period, liked a post
that they had not liked before; all trials are scored on the same users.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from batch.evaluation.catalogue_case import CatalogueCase, ScoredLists, build_case, score_lists, summarise
from batch.evaluation.full_catalogue import MIN_USERS, rank_by_model
from batch.evaluation.ranking_metrics import round_or_none
from batch.training.dataset import Dataset
from batch.training.fit import fit
from batch.training.recipe import Recipe
from batch.variants import Variant
from contract.errors import ModelError
from contract.settings import Settings

MAX_USERS = 5_000
"""Users whose lists are scored, drawn at random if there are more, to limit the duration of a trial."""

COMPARED = ("ndcg_at_10", "hitrate_at_5", "recall_at_20", "coverage_at_10")
"""Metrics of the comparison, the primary metric first."""


@dataclass(frozen=True, eq=False)
class Period:
    """The holdout of a dataset, as a case of the full catalogue.

    Attributes
    ----------
    dataset
        Models are trained on its windows before the holdout.
    case
        The users to evaluate, with features as of the holdout's start.
    """

    dataset: Dataset
    case: CatalogueCase

    @classmethod
    def build(cls, dataset: Dataset, seed: int) -> Period:
        """Build the case, once for all trials.

        Raises
        ------
        ModelError
            There are fewer than `MIN_USERS` users to evaluate.
        """
        history, likes = dataset.at_holdout, dataset.now.likes
        case = build_case(dataset.network, history, likes, MAX_USERS, seed)
        if case.users.size < MIN_USERS:
            start, end = history.cutoff.isoformat(), dataset.split.cutoff.isoformat()
            raise ModelError(
                f"from {start} to {end} only {case.users.size} users liked a post that they had not liked "
                f"before, of {MIN_USERS} needed to compare parameters; no parameters were changed; wait for "
                "more interactions, or change OVERNIGHT_HOLDOUT_FRACTION"
            )
        return cls(dataset, case)

    def score(
        self, variant: Variant, recipe: Recipe, settings: Settings, parameters: Mapping[str, Any]
    ) -> ScoredModel:
        """Fit on the windows before the period, and score the lists of the users to evaluate.

        Raises
        ------
        ModelError
            All examples have the same label.
        """
        dataset = self.dataset
        model = fit(
            variant, dataset, windows=dataset.training, recipe=recipe, settings=settings, tuned=parameters
        )
        lists = rank_by_model(model, dataset.network, dataset.at_holdout, self.case, settings.night.threads)
        return ScoredModel(model.digest, score_lists(self.case, lists))

    def record(self) -> dict[str, Any]:
        """Return the JSON object for a file of parameters: from and until (ISO 8601), number of users."""
        split = self.dataset.split
        return {
            "from": split.holdout_start.isoformat(),
            "until": split.cutoff.isoformat(),
            "users": int(self.case.users.size),
        }

    def digest(self) -> str:
        """Return the SHA-256 of the case: users, likes before and after, hidden posts."""
        case = self.case
        parts = (case.user_ids, case.liked_later, case.hidden, case.likes.starts, case.likes.posts)
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


@dataclass(frozen=True)
class ScoredModel:
    """The metrics of a model's lists in a period, and the model's digest."""

    digest: str
    lists: ScoredLists


def compare(default: ScoredLists, tuned: ScoredLists, seed: int) -> dict[str, dict[str, float | None]]:
    """Compare the lists of two models for the same users.

    Returns
    -------
    Metric -> `default`, `tuned` and `difference` (tuned minus default); `low`
    and `high`, the 95 % interval of the difference, paired by user. Coverage is
    one value for all lists together and has no interval.
    """
    of_default, of_tuned = summarise([default], seed), summarise([tuned], seed)
    differences = of_tuned.minus(of_default)
    comparison: dict[str, dict[str, float | None]] = {}
    for name in COMPARED:
        comparison[name] = compare_values(of_default.values[name], of_tuned.values[name])
        if name in differences:
            difference = differences[name]
            comparison[name] |= {"low": round_or_none(difference.low), "high": round_or_none(difference.high)}
    return comparison


def compare_values(default: float, tuned: float) -> dict[str, float | None]:
    """Return both values and their difference, tuned minus default, to six digits."""
    return {
        "default": round_or_none(default),
        "tuned": round_or_none(tuned),
        "difference": round_or_none(tuned - default),
    }
