"""Judges parameters by how a model ranks the full catalogue, and compares two such models.

A period is what follows the start of a holdout. The models learn from the
windows before it; the users who liked a post of the period that they had not
liked before are judged, the same ones for all parameters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from batch.evaluation.catalogue_case import CatalogueCase, ScoredLists, build_case, score_lists, summarise
from batch.evaluation.full_catalogue import MIN_USERS, rank_by_model
from batch.evaluation.ranking_metrics import rounded
from batch.training.dataset import Dataset
from batch.training.fit import fit
from batch.training.recipe import Recipe
from batch.variants import Variant
from contract.errors import ModelError
from contract.settings import Settings

MAX_USERS = 5_000
"""Users whose lists are judged, drawn at random where there are more: a trial is to stay short."""

COMPARED = ("ndcg_at_10", "hitrate_at_5", "recall_at_20", "coverage_at_10")
"""Figures of the comparison, the first figure first."""


@dataclass(frozen=True, eq=False)
class Period:
    """The holdout of what was gathered, as a case of the full catalogue.

    Attributes
    ----------
    gathered
        Its windows before the holdout are learnt from.
    case
        The users to judge, with features as of the holdout's start.
    """

    dataset: Dataset
    case: CatalogueCase

    @classmethod
    def build(cls, dataset: Dataset, seed: int) -> Period:
        """Build the case once for all trials.

        Raises
        ------
        ModelError
            There are fewer than `MIN_USERS` users to judge.
        """
        history, likes = dataset.at_holdout, dataset.now.likes
        case = build_case(dataset.network, history, likes, MAX_USERS, seed)
        if case.users.size < MIN_USERS:
            start, end = history.cutoff.isoformat(), dataset.split.cutoff.isoformat()
            raise ModelError(
                f"from {start} to {end} only {case.users.size} users liked a post that they had not liked "
                f"before, of {MIN_USERS} needed to judge parameters; no parameters were changed; let more "
                "interactions gather, or change OVERNIGHT_HOLDOUT_FRACTION"
            )
        return cls(dataset, case)

    def score(
        self, variant: Variant, recipe: Recipe, settings: Settings, parameters: Mapping[str, Any]
    ) -> ScoredModel:
        """Fit on the windows before the period, and score the lists of the users to judge.

        Raises
        ------
        ModelError
            Nothing can be learnt from the examples.
        """
        dataset = self.dataset
        model = fit(variant, dataset, dataset.training, recipe, settings, parameters)
        lists = rank_by_model(model, dataset.network, dataset.at_holdout, self.case, settings.night.threads)
        return ScoredModel(model.digest, score_lists(self.case, lists))

    def record(self) -> dict[str, Any]:
        """Return what a file of parameters keeps: from and until (ISO 8601), and the users judged."""
        split = self.dataset.split
        return {
            "from": split.holdout_start.isoformat(),
            "until": split.cutoff.isoformat(),
            "users": int(self.case.users.size),
        }

    def digest(self) -> str:
        """Return the SHA-256 of who is judged, by which likes, among which posts."""
        case = self.case
        parts = (case.user_ids, case.liked_later, case.hidden, case.likes.starts, case.likes.posts)
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


@dataclass(frozen=True)
class ScoredModel:
    """The figures of a model's lists in a period, and the model's digest."""

    digest: str
    lists: ScoredLists


def compare(default: ScoredLists, tuned: ScoredLists, seed: int) -> dict[str, dict[str, float | None]]:
    """Compare the lists of two models for the same users.

    Returns
    -------
    Metric -> `default`, `tuned` and `difference`, above zero where tuned is the
    larger; `low` and `high`, the 95 % interval of the difference, paired by
    user. Coverage is a figure of all lists together and has no interval.
    """
    of_default, of_tuned = summarise([default], seed), summarise([tuned], seed)
    differences = of_tuned.minus(of_default)
    found: dict[str, dict[str, float | None]] = {}
    for name in COMPARED:
        found[name] = compare_values(of_default.values[name], of_tuned.values[name])
        if name in differences:
            _, low, high = differences[name]
            found[name] |= {"low": rounded(low), "high": rounded(high)}
    return found


def compare_values(default: float, tuned: float) -> dict[str, float | None]:
    """Return both figures and the difference of tuned to default, to six digits."""
    return {"default": rounded(default), "tuned": rounded(tuned), "difference": rounded(tuned - default)}
