"""Evaluates a model on the holdout, beside random order and popularity."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from batch.examples import Examples
from batch.features import post_like_rate
from batch.gather import Gathered
from batch.history import History
from batch.load import Network
from batch.metrics import RANKING, probability_metrics, ranking_metrics
from batch.model import Model

Floats = npt.NDArray[np.float64]

RANDOM_ORDERS = 20
"""Random order is no figure but a distribution; this many draws give its mean."""


def holdout_rows(examples: Examples) -> Examples:
    """Return the distinct (user, post) pairs to judge on: logged views, or all rows where none is logged."""
    views = examples.where(examples.viewed)
    return (views if len(views) else examples).distinct()


def evaluate(model: Model, gathered: Gathered, threads: int) -> dict[str, Any]:
    """Judge a model on the holdout, with features as of its start, by the viewed-only protocol.

    Returns
    -------
    `protocol`, `holdout` (from, until, users, views) and one object of metrics
    for each of `model`, `random` and `popularity`; None where a metric has no
    value.
    """
    rows, history, split = holdout_rows(gathered.holdout), gathered.at_holdout, gathered.split
    scores = _scores(model, gathered.network, history, rows, threads)
    popular, popular_rate = _popularity(history, rows)
    like_rate = float(gathered.training.liked.mean())
    return {
        "protocol": "viewed-only" if rows.viewed.any() else "likes beside sampled negatives",
        "holdout": {
            "from": split.holdout_start.isoformat(),
            "until": split.cutoff.isoformat(),
            "users": int(np.unique(rows.users).size),
            "views": len(rows),
        },
        "model": _judge(rows, scores, 1 / (1 + np.exp(-scores))),
        "random": _judge_random(rows, like_rate, model.seed),
        "popularity": _judge(rows, popular, popular_rate),
    }


def _scores(model: Model, network: Network, history: History, rows: Examples, threads: int) -> Floats:
    tables, factors = model.tables(network, history), model.factors(network, history)
    if len(rows) == 0:
        return np.empty(0)
    scores = np.asarray(
        model.booster.predict(tables.rows(rows.users, rows.posts), raw_score=True, num_threads=threads),
        np.float64,
    )
    return scores if factors is None else scores + factors.dot(rows.users, rows.posts)


def _popularity(history: History, rows: Examples) -> tuple[Floats, Floats | None]:
    """Return the score of each row's post by like rate, or by likes where views are not known."""
    rate = post_like_rate(history)
    if np.isnan(rate).any():
        likes: Floats = history.post_counts["likes"].to_numpy(np.float64)[rows.posts]
        return likes, None
    return rate[rows.posts], rate[rows.posts]


def _judge(rows: Examples, scores: Floats, probabilities: Floats | None) -> dict[str, float | None]:
    metrics = ranking_metrics(rows.users, rows.posts, rows.liked, scores)
    return _rounded(metrics | probability_metrics(rows.liked, scores, probabilities))


def _judge_random(rows: Examples, like_rate: float, seed: int) -> dict[str, float | None]:
    random = np.random.default_rng(seed)
    draws = [
        ranking_metrics(rows.users, rows.posts, rows.liked, random.random(len(rows)))
        for _ in range(RANDOM_ORDERS)
    ]
    means = {name: float(np.mean([draw[name] for draw in draws])) for name in RANKING}
    constant = np.full(len(rows), like_rate)
    return _rounded(means | probability_metrics(rows.liked, constant, constant))


def _rounded(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: round(value, 4) if np.isfinite(value) else None for name, value in metrics.items()}
