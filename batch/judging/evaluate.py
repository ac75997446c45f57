"""Evaluates a model on the holdout of the night's time split, beside random order and popularity."""

from __future__ import annotations

from typing import Any

from batch.judging.catalogue import MOST_USERS, full_catalogue
from batch.judging.evaluation import Evaluation, evaluation
from batch.judging.judged import Judged, judge
from batch.learning.gather import Gathered
from batch.learning.model import Model
from batch.loading.examples import Examples

__all__ = ["Judged", "evaluate", "evaluated", "holdout_rows", "judged"]


def holdout_rows(examples: Examples) -> Examples:
    """Return the distinct (user, post) pairs to judge on: logged views, or all rows where none is logged."""
    views = examples.where(examples.viewed)
    return (views if len(views) else examples).distinct()


def judged(model: Model, gathered: Gathered, threads: int) -> Judged:
    """Score the holdout with features as of its start."""
    rows, like_rate = holdout_rows(gathered.holdout), float(gathered.training.liked.mean())
    return judge(model, gathered.network, gathered.at_holdout, rows, like_rate, threads)


def evaluated(model: Model, gathered: Gathered, threads: int, most_users: int = MOST_USERS) -> Evaluation:
    """Judge a model on the holdout by both protocols, features as of the holdout's start.

    Parameters
    ----------
    most_users
        How many users to judge over the full catalogue.
    """
    return _measured(model, gathered, judged(model, gathered, threads), threads, most_users)


def evaluate(model: Model, gathered: Gathered, rows: Judged, threads: int) -> dict[str, Any]:
    """Measure a model on the holdout; return what the manifest keeps.

    Parameters
    ----------
    rows
        The holdout as `judged` scored it.

    Returns
    -------
    `protocol`, `holdout` (from, until, users, views), one object of metrics for
    each of `model`, `random` and `popularity`, their 95 % `intervals` (low,
    high), `calibration` by deciles, `segments`, and `full_catalogue` with the
    same objects by that protocol; None where a figure has no value.
    """
    found, split = _measured(model, gathered, rows, threads, MOST_USERS), gathered.split
    holdout = {
        "from": split.holdout_start.isoformat(),
        "until": split.cutoff.isoformat(),
        "users": found.users,
        "views": found.rows,
    }
    return {"holdout": holdout, **found.record()}


def _measured(model: Model, gathered: Gathered, rows: Judged, threads: int, most_users: int) -> Evaluation:
    catalogue = full_catalogue(
        model, gathered.network, gathered.at_holdout, gathered.holdout, threads, most_users
    )
    return evaluation(rows, model.seed, catalogue)
