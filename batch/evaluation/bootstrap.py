"""95 % intervals by the bootstrap over users (Efron, 1979): whole users are drawn, with all their rows.

A draw is a weight per user: how often the user was drawn. The same users and
seed give the same draws. So two models that were evaluated on the same rows can
be compared draw by draw, which gives the interval of a paired difference.

    for each draw:
        draw as many users as there are, with replacement; count how often each was drawn
        compute every metric with these counts as weights
    interval = 2.5th and 97.5th percentile over draws
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from batch.arrays import Bools, Float64s, Int64s
from batch.evaluation.ranking_metrics import BINS, Auc, Calibration, calibration_error, log_losses
from batch.ids import Ids

MIN_DRAWS, MAX_DRAWS = 100, 500
MAX_ROWS_DRAWN = 100_000_000
"""Upper bound of draws times rows: with many rows there are fewer draws."""

PERCENTILES = (2.5, 97.5)


class Interval(NamedTuple):
    """A 95 % interval; NaN where it is unknown."""

    low: float
    high: float


class Difference(NamedTuple):
    """A metric minus the same metric of another ranker, with its 95 % interval; NaN where unknown."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PointwiseRows:
    """Rows that are evaluated together, whatever list they belong to.

    Attributes
    ----------
    users, liked, scores
        (rows,) row of the user in the network, label and score.
    probabilities
        (rows,) probabilities of a like; None where the scores do not give any.
    """

    users: Int64s
    liked: Bools
    scores: Float64s
    probabilities: Float64s | None


@dataclass(frozen=True)
class BootstrapResult:
    """The value of every metric, and its values in the draws (none for a metric without an interval)."""

    values: dict[str, float]
    draws: dict[str, Float64s]
    deciles: tuple[dict[str, float], ...] = ()

    def interval(self, name: str) -> Interval:
        """Return the 95 % interval of a metric; NaN where it has none."""
        return _interval(self.draws.get(name, np.empty(0)))

    def minus(self, other: BootstrapResult) -> dict[str, Difference]:
        """Subtract the other result; return the metrics that both have, paired draw by draw."""
        return {
            name: Difference(self.values[name] - other.values[name], *_interval(drawn - other.draws[name]))
            for name, drawn in self.draws.items()
            if name in other.draws
        }


def bootstrap(
    lists: dict[str, Float64s], user_of_list: Ids, rows: PointwiseRows | None, seed: int
) -> BootstrapResult:
    """Average every metric of the lists, compute the pointwise metrics, and bootstrap both over users.

    Parameters
    ----------
    lists
        Metric -> (lists,) value of each list, NaN where undefined.
    user_of_list
        (lists,) the user of each list.
    rows
        What the pointwise metrics are computed on; None for none of them.
    """
    users = np.unique(user_of_list)
    owner = np.searchsorted(users, user_of_list)
    resampler = _Resampler(lists, owner, users, rows)
    values = resampler.weighted(np.ones(users.size))
    row_count = user_of_list.size if rows is None else rows.users.size
    draws = int(np.clip(MAX_ROWS_DRAWN // max(row_count, 1), MIN_DRAWS, MAX_DRAWS))
    drawn = [resampler.weighted(weights) for weights in draw_weights(users.size, draws, seed)]
    return BootstrapResult(
        values,
        {name: np.array([draw[name] for draw in drawn]) for name in values},
        tuple(resampler.deciles),
    )


def draw_weights(users: int, draws: int, seed: int) -> Iterator[Float64s]:
    """Yield per draw (users,) how often each user was drawn; a draw takes `users` with replacement."""
    random = np.random.default_rng(seed)
    for _ in range(draws if users else 0):
        yield np.bincount(random.integers(0, users, users), minlength=users).astype(np.float64)


class _Resampler:
    """Computes all metrics of one draw: one matrix product for the ratios of sums, and the AUC."""

    def __init__(
        self, lists: dict[str, Float64s], owner: Int64s, users: Int64s, rows: PointwiseRows | None
    ) -> None:
        self._names = list(lists)
        count = users.size
        sums = [np.bincount(owner, np.nan_to_num(values), count) for values in lists.values()]
        defined = [np.bincount(owner, ~np.isnan(values), count) for values in lists.values()]
        self._ratios = np.stack([np.stack(sums, axis=1), np.stack(defined, axis=1)]) if lists else None
        self.deciles: list[dict[str, float]] = []
        self._rows = rows
        if rows is None:
            return
        user = np.searchsorted(users, rows.users)
        self._auc = Auc(rows.liked, rows.scores)
        self._ordered_user = user[self._auc.order]
        if rows.probabilities is not None:
            self._row_counts = np.bincount(user, minlength=count).astype(np.float64)
            self._losses = np.bincount(user, log_losses(rows.liked, rows.probabilities), count)
            calibration = Calibration.from_rows(user, count, rows.liked, rows.probabilities)
            self._bins = calibration.sums.reshape(count, 3 * BINS)
            self.deciles = calibration.deciles()

    def weighted(self, weights: Float64s) -> dict[str, float]:
        """Return every metric under these weights of the users."""
        metrics: dict[str, float] = {}
        if self._ratios is not None:
            sums, counts = weights @ self._ratios[0], weights @ self._ratios[1]
            metrics = {name: _ratio(s, n) for name, s, n in zip(self._names, sums, counts, strict=True)}
        if self._rows is None:
            return metrics
        metrics["roc_auc"] = self._auc.compute(weights[self._ordered_user])
        metrics["log_loss"] = metrics["calibration_error"] = float("nan")
        if self._rows.probabilities is not None:
            metrics["log_loss"] = _ratio(float(weights @ self._losses), float(weights @ self._row_counts))
            metrics["calibration_error"] = calibration_error((weights @ self._bins).reshape(3, -1))
        return metrics


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else float("nan")


def _interval(drawn: Float64s) -> Interval:
    known = drawn[~np.isnan(drawn)]
    if known.size == 0:
        return Interval(float("nan"), float("nan"))
    low, high = np.percentile(known, PERCENTILES)
    return Interval(float(low), float(high))
