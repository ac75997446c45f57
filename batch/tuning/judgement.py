"""Fits with given parameters, judges by log loss on a holdout, and puts two such judgements side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batch.judging.choose_recipe import choose_recipe
from batch.judging.evaluate import holdout_rows
from batch.judging.metrics import ranking_metrics
from batch.learning.fit import fit
from batch.learning.gather import Gathered
from batch.loading.examples import Examples
from batch.variants import Variant
from contract.errors import ModelError
from contract.settings import Settings

Floats = npt.NDArray[np.float64]

COMPARED = ("hitrate_at_5", "ndcg_at_5")


@dataclass(frozen=True)
class Judgement:
    """A model on the rows it is judged by.

    Attributes
    ----------
    rows
        Distinct (user, post) pairs with their label.
    scores, losses
        (rows,) log-odds of a like, and the log loss (natural logarithm) of each row.
    digest
        The model's.
    """

    rows: Examples
    scores: Floats
    losses: Floats
    digest: str

    @property
    def log_loss(self) -> float:
        """Mean over the rows (natural logarithm)."""
        return float(self.losses.mean())


def judge(
    variant: Variant, gathered: Gathered, settings: Settings, parameters: Mapping[str, Any]
) -> Judgement:
    """Fit on the training labels of what was gathered, and score the rows of its holdout.

    Raises
    ------
    ModelError
        There are no rows to judge by.
    """
    recipe = choose_recipe(variant, gathered, settings, parameters).recipe
    model = fit(variant, gathered, gathered.training, recipe, settings, parameters)
    rows, history = holdout_rows(gathered.holdout), gathered.at_holdout
    if len(rows) == 0:
        raise ModelError(
            f"after {history.cutoff.isoformat()} there are no examples to judge by; let more "
            "interactions gather, or change OVERNIGHT_HOLDOUT_FRACTION"
        )
    scores = model.scores(gathered.network, history, rows, settings.threads)
    return Judgement(rows, scores, np.logaddexp(0, scores) - rows.liked * scores, model.digest)


def compare(default: Judgement, best: Judgement) -> dict[str, dict[str, float]]:
    """Put two models beside each other on the same rows.

    Returns
    -------
    Metric -> `default`, `tuned` and `difference`; for log loss also the
    `standard_error` of the difference, over users: rows of one user are alike.
    """
    rows, change = default.rows, best.losses - default.losses
    of_users = np.bincount(rows.users, weights=change - change.mean())
    ranked = [
        ranking_metrics(rows.users, rows.posts, rows.liked, judged.scores) for judged in (default, best)
    ]
    figures = {"log_loss": beside(default.log_loss, best.log_loss)}
    figures["log_loss"]["standard_error"] = round(float(np.sqrt(np.sum(of_users**2))) / len(rows), 6)
    return figures | {name: beside(ranked[0][name], ranked[1][name]) for name in COMPARED}


def beside(default: float, tuned: float) -> dict[str, float]:
    """Return a figure of both and their difference, below zero where tuned is the smaller."""
    return {
        "default": round(default, 6),
        "tuned": round(tuned, 6),
        "difference": round(tuned - default, 6),
    }
