"""95 % intervals by the bootstrap over users (Efron, 1979): whole users are drawn, with all their rows.

A draw is a weight per user, how often the user was drawn. The same users and
seed give the same draws, so two models judged on the same rows can be compared
draw by draw: that is what a paired difference is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from batch.arrays import Bools, Float64s, Int64s
from batch.evaluation.pointwise_metrics import BINS, Auc, Calibration, calibration_error, losses

FEWEST_DRAWS, MOST_DRAWS = 100, 500
ROWS_DRAWN = 100_000_000
"""Draws times rows; many rows make do with fewer draws."""

PERCENTILES = (2.5, 97.5)

Interval = tuple[float, float]

Difference = tuple[float, float, float]
"""A metric less that of another, and the 95 % interval (low, high) of that; NaN where there is none."""


@dataclass(frozen=True)
class Pooled:
    """Rows judged together.

    Attributes
    ----------
    users, liked, scores
        (rows,) place of the user, label and score.
    probabilities
        (rows,) probabilities of a like; None where the scores tell none.
    """

    users: Int64s
    liked: Bools
    scores: Float64s
    probabilities: Float64s | None


@dataclass(frozen=True)
class Measured:
    """Every metric's value, and its values in the draws (none for a metric without an interval)."""

    values: dict[str, float]
    draws: dict[str, Float64s]
    deciles: tuple[dict[str, float], ...] = ()

    def interval(self, name: str) -> Interval:
        """Return the 95 % interval of a metric; NaN where it has none."""
        return _interval(self.draws.get(name, np.empty(0)))

    def minus(self, other: Measured) -> dict[str, Difference]:
        """Return difference, low and high for each metric that both have, paired draw by draw."""
        return {
            name: (self.values[name] - other.values[name], *_interval(drawn - other.draws[name]))
            for name, drawn in self.draws.items()
            if name in other.draws
        }


def measure(lists: dict[str, Float64s], user_of_list: Int64s, pooled: Pooled | None, seed: int) -> Measured:
    """Average every metric of the lists, judge the pooled rows, and bootstrap both over users.

    Parameters
    ----------
    lists
        Metric -> (lists,) value of each list, NaN where it has none.
    user_of_list
        (lists,) whose list it is.
    """
    users = np.unique(user_of_list)
    owner = np.searchsorted(users, user_of_list)
    sums = _Sums(lists, owner, users, pooled)
    everyone = np.ones(users.size)
    values = sums.weighed(everyone)
    rows = user_of_list.size if pooled is None else pooled.users.size
    draws = int(np.clip(ROWS_DRAWN // max(rows, 1), FEWEST_DRAWS, MOST_DRAWS))
    drawn = [sums.weighed(weights) for weights in resamples(users.size, draws, seed)]
    return Measured(
        values,
        {name: np.array([draw[name] for draw in drawn]) for name in values},
        tuple(sums.deciles),
    )


def resamples(users: int, draws: int, seed: int) -> Iterator[Float64s]:
    """Yield a draw at a time (users,) how often each was drawn, with replacement, as many as there are."""
    random = np.random.default_rng(seed)
    for _ in range(draws if users else 0):
        yield np.bincount(random.integers(0, users, users), minlength=users).astype(np.float64)


class _Sums:
    """What a draw adds up: one matrix product for all that is a ratio of sums, and the AUC by itself."""

    def __init__(
        self, lists: dict[str, Float64s], owner: Int64s, users: Int64s, pooled: Pooled | None
    ) -> None:
        self._names = list(lists)
        count = users.size
        tops = [np.bincount(owner, np.nan_to_num(values), count) for values in lists.values()]
        bottoms = [np.bincount(owner, ~np.isnan(values), count) for values in lists.values()]
        self._rates = np.stack([np.stack(tops, axis=1), np.stack(bottoms, axis=1)]) if lists else None
        self.deciles: list[dict[str, float]] = []
        self._pooled = pooled
        if pooled is None:
            return
        user = np.searchsorted(users, pooled.users)
        self._auc = Auc(pooled.liked, pooled.scores)
        self._user_in_order = user[self._auc.order]
        if pooled.probabilities is not None:
            self._rows = np.bincount(user, minlength=count).astype(np.float64)
            self._losses = np.bincount(user, losses(pooled.liked, pooled.probabilities), count)
            calibration = Calibration.of(user, count, pooled.liked, pooled.probabilities)
            self._bins = calibration.sums.reshape(count, 3 * BINS)
            self.deciles = calibration.deciles()

    def weighed(self, weights: Float64s) -> dict[str, float]:
        """Return every metric under these weights of the users."""
        found: dict[str, float] = {}
        if self._rates is not None:
            tops, bottoms = weights @ self._rates[0], weights @ self._rates[1]
            found = {name: _ratio(t, b) for name, t, b in zip(self._names, tops, bottoms, strict=True)}
        if self._pooled is None:
            return found
        found["roc_auc"] = self._auc.of(weights[self._user_in_order])
        found["log_loss"] = found["calibration_error"] = float("nan")
        if self._pooled.probabilities is not None:
            found["log_loss"] = _ratio(float(weights @ self._losses), float(weights @ self._rows))
            found["calibration_error"] = calibration_error((weights @ self._bins).reshape(3, -1))
        return found


def _ratio(top: float, bottom: float) -> float:
    return float(top / bottom) if bottom > 0 else float("nan")


def _interval(drawn: Float64s) -> Interval:
    known = drawn[~np.isnan(drawn)]
    if known.size == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(known, PERCENTILES)
    return float(low), float(high)
