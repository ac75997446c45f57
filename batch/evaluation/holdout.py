"""A model on the holdout, under both protocols, with features as of the holdout's start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from batch.evaluation.evaluate import Evaluation, evaluate_rows
from batch.evaluation.full_catalogue import MAX_USERS, RankedCase, measure_cases, rank_case
from batch.evaluation.rule_cost import RuleCost
from batch.evaluation.scored_rows import ScoredRows, score_rows
from batch.loading.examples import Examples
from batch.training.dataset import Dataset, Window
from batch.training.model import Model
from contract.settings import Settings


@dataclass(frozen=True)
class HoldoutEvaluation:
    """One model on the holdout: scored rows, ranked lists, the metrics of both, and the costs of rules."""

    rows: ScoredRows
    ranked: RankedCase
    metrics: Evaluation
    rule_costs: dict[str, RuleCost] = field(default_factory=dict)

    def record(self, dataset: Dataset) -> dict[str, Any]:
        """Return the JSON object for a manifest.

        Returns
        -------
        `split`: what time was cut by, and what there was to train and evaluate on.
        `full_catalogue`, see `CatalogueResult.record`: the primary metrics. For the
        rows: `protocol`, `holdout` (from, until, users, views), `judged` and
        `why_not_judged`, one object of metrics for each of `model`, `random`
        and `popularity`, their 95 % `intervals` (low, high), `calibration` by
        deciles and `segments`. `rule_costs`: rule of the feed -> `RuleCost.record`, if there are
        any. Values without a number are None.
        """
        split = dataset.split
        holdout = {
            "from": split.holdout_start.isoformat(),
            "until": split.cutoff.isoformat(),
            "users": self.metrics.users,
            "views": self.metrics.rows,
        }
        record = {"holdout": holdout, "split": split.record(), **self.metrics.record()}
        costs = {name: cost.record() for name, cost in self.rule_costs.items()}
        return record | ({"rule_costs": costs} if costs else {})


def evaluate_holdout(
    model: Model, dataset: Dataset, settings: Settings, max_users: int = MAX_USERS
) -> HoldoutEvaluation:
    """Evaluate a model on the holdout under both protocols.

    Parameters
    ----------
    max_users
        Maximum number of users for the full catalogue.
    """
    rows = score_holdout(model, dataset, settings)
    ranked = rank_holdout(model, dataset, settings, max_users)
    return HoldoutEvaluation(
        rows, ranked, evaluate_rows(rows, model.seed, measure_cases([ranked], model.seed))
    )


def score_holdout(model: Model, dataset: Dataset, settings: Settings) -> ScoredRows:
    """Score the labelled rows of the holdout."""
    return score_rows(
        model,
        dataset.network,
        dataset.at_holdout,
        select_rows(dataset.holdout),
        base_rate=compute_like_rate(dataset.training),
        threads=settings.night.threads,
    )


def rank_holdout(model: Model, dataset: Dataset, settings: Settings, max_users: int) -> RankedCase:
    """Rank the full catalogue as of the holdout's start, for users who liked something in the holdout.

    All likes are used, also those that are not among the holdout's examples.
    """
    return rank_case(
        model,
        dataset.network,
        dataset.before_holdout,
        dataset.at_holdout,
        dataset.now.likes,
        settings=settings,
        max_users=max_users,
    )


def select_rows(examples: Examples) -> Examples:
    """Return the distinct (user, post) pairs to evaluate: logged views, or all rows if none is logged."""
    views = examples.select(examples.viewed)
    return (views if len(views) else examples).distinct()


def compute_like_rate(windows: Sequence[Window]) -> float:
    """Return the share of likes among the labelled views of windows: the prediction of random order."""
    liked = np.concatenate([each.views.liked for each in windows])
    return float(liked.mean()) if liked.size else float("nan")
