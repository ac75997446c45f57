"""Evaluates a model on the holdout of the night's time split, beside what is simpler than a model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from batch.judging.evaluation import Evaluation, evaluation
from batch.judging.full_catalogue import MAX_USERS, RankedCase, measure_cases, rank_case
from batch.judging.judged import Judged, judge
from batch.learning.gather import Gathered, Window
from batch.learning.model import Model
from batch.loading.examples import Examples

log = logging.getLogger("batch")

__all__ = ["Judged", "evaluate", "evaluated", "holdout_rows", "judged", "rank_holdout"]


def holdout_rows(examples: Examples) -> Examples:
    """Return the distinct (user, post) pairs to judge on: logged views, or all rows where none is logged."""
    views = examples.where(examples.viewed)
    return (views if len(views) else examples).distinct()


def share_of_likes(windows: Sequence[Window]) -> float:
    """Return the share of likes among the labelled views of windows: all that random order knows."""
    liked = np.concatenate([each.views.liked for each in windows])
    return float(liked.mean()) if liked.size else float("nan")


def judged(model: Model, gathered: Gathered, threads: int) -> Judged:
    """Score the holdout with features as of its start."""
    rows = holdout_rows(gathered.holdout)
    like_rate = share_of_likes(gathered.training)
    return judge(model, gathered.network, gathered.at_holdout, rows, like_rate, threads)


def rank_holdout(model: Model, gathered: Gathered, threads: int, max_users: int) -> RankedCase:
    """Rank the full catalogue as of the holdout's start, for users who liked something in the holdout.

    Every like counts, also those that are not among the examples of the holdout.
    """
    earlier, history = gathered.before_holdout, gathered.at_holdout
    return rank_case(model, gathered.network, earlier, history, gathered.now.likes, threads, max_users)


def evaluated(model: Model, gathered: Gathered, threads: int, max_users: int = MAX_USERS) -> Evaluation:
    """Judge a model on the holdout by both protocols, features as of the holdout's start.

    Parameters
    ----------
    max_users
        How many users to judge over the full catalogue.
    """
    ranked = rank_holdout(model, gathered, threads, max_users)
    rows = judged(model, gathered, threads)
    return evaluation(rows, model.seed, measure_cases([ranked], model.seed))


def evaluate(model: Model, gathered: Gathered, rows: Judged, ranked: RankedCase) -> dict[str, Any]:
    """Measure a model on the holdout; return what the manifest keeps.

    Parameters
    ----------
    rows
        The holdout as `judged` scored it.
    ranked
        The holdout as `rank_holdout` ranked it.

    Returns
    -------
    `full_catalogue`, see `CatalogueFigures.record`: the first figures. Beside
    it, of the rows: `protocol`, `holdout` (from, until, users, views), `judged`
    and `why_not_judged`, one object of metrics for each of `model`, `random`
    and `popularity`, their 95 % `intervals` (low, high), `calibration` by
    deciles and `segments`; None where a figure has no value.
    """
    found, split = evaluation(rows, model.seed, measure_cases([ranked], model.seed)), gathered.split
    for protocol, why in found.cannot_judge_by().items():
        log.warning("%s: the holdout cannot judge the model: %s", protocol, why)
    holdout = {
        "from": split.holdout_start.isoformat(),
        "until": split.cutoff.isoformat(),
        "users": found.users,
        "views": found.rows,
    }
    return {"holdout": holdout, **found.record()}
