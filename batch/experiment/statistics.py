"""The difference between test and control in one metric, with what its interval rests on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from batch.arrays import Float64s

CONFIDENCE = 0.95
SIGNIFICANCE = 1 - CONFIDENCE
POWER = 0.8

FEWEST_USERS = 2
"""Of a variant; fewer have no variance."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Test less control.

    Attributes
    ----------
    control, test
        The metric in each variant, as it is, not adjusted.
    absolute, relative
        The difference after CUPED, and its share of control's value (None where that is 0).
    unadjusted
        The absolute difference without CUPED.
    p_value
        Two-sided, of the adjusted difference, by Welch's test.
    variance_reduction
        Share of the difference's variance that CUPED took away.
    detectable
        Absolute difference that would be found with 80 % power.
    detectable_relative
        The same as a share of control's value; None where that is 0.
    """

    metric: Metric
    control: float
    test: float
    absolute: Interval
    relative: Interval | None
    unadjusted: Interval
    p_value: float
    variance_reduction: float
    detectable: float
    detectable_relative: float | None


def compare(users: pd.DataFrame, metric: Metric) -> Difference | None:
    """Compare the variants in one metric; None where a variant has no value or no variance.

    Parameters
    ----------
    users
        Row per user with the columns that `batch.experiment.statistics` names.
    """
    in_test = users[IN_TEST].to_numpy(bool)
    control, test = (metric.values(users[chosen]) for chosen in (~in_test, in_test))
    if control is None or test is None or min(control.size, test.size) < FEWEST_USERS:
        return None
    if np.ptp(control) == 0 and np.ptp(test) == 0:
        return None
    plain = _welch(control, test)
    adjusted = _cuped(control, test, metric.values(users, before=True), in_test)
    welch = _welch(*adjusted)
    base, relative = float(control.mean()), None
    detectable = float((stats.norm.ppf(1 - SIGNIFICANCE / 2) + stats.norm.ppf(POWER)) * welch.standard_error)
    if base > 0:
        relative = _relative(*adjusted)
    return Difference(
        metric=metric,
        control=base,
        test=float(test.mean()),
        absolute=welch.interval,
        relative=relative,
        unadjusted=plain.interval,
        p_value=welch.p_value,
        variance_reduction=1 - (welch.standard_error / plain.standard_error) ** 2,
        detectable=detectable,
        detectable_relative=detectable / base if base > 0 else None,
    )


def _cuped(
    control: Float64s, test: Float64s, before: Float64s | None, in_test: np.ndarray
) -> tuple[Float64s, Float64s]:
    """Take out of each user's number what the same metric before the experiment foretold.

    CUPED (Deng, Xu, Kohavi and Walker, 2013). The slope is that within the
    variants; nothing is taken out where there was no activity before.
    """
    if before is None or np.ptp(before) == 0:
        return control, test
    centred = before - before.mean()
    by_variant = (centred[~in_test], centred[in_test])
    spread = [values - values.mean() for values in by_variant]
    shared = sum(
        float(place @ (values - values.mean())) for place, values in zip(spread, (control, test), strict=True)
    )
    slope = shared / max(sum(float(place @ place) for place in spread), np.finfo(float).tiny)
    return control - slope * by_variant[0], test - slope * by_variant[1]


@dataclass(frozen=True)
class _Welch:
    interval: Interval
    p_value: float
    standard_error: float


def _welch(control: Float64s, test: Float64s) -> _Welch:
    found = stats.ttest_ind(test, control, equal_var=False)
    bounds = found.confidence_interval(CONFIDENCE)
    value = float(test.mean() - control.mean())
    standard_error = float(np.sqrt(sum(each.var(ddof=1) / each.size for each in (control, test))))
    interval = Interval(value, float(bounds.low), float(bounds.high))
    return _Welch(interval, float(found.pvalue), standard_error)


def _relative(control: Float64s, test: Float64s) -> Interval | None:
    """Return mean(test) / mean(control) - 1 by the delta method: a ratio of means, made linear once more."""
    base = float(control.mean())
    if base <= 0:
        return None
    ratio = float(test.mean()) / base
    linear = _welch(ratio * control / base, test / base).interval  # its value is 0
    return Interval(ratio - 1, ratio - 1 + linear.low, ratio - 1 + linear.high)


@dataclass(frozen=True)
class DayDifference:
    """Likes per view of a day (ISO date, UTC), test less control, among the users who acted on it."""

    day: str
    control: float
    test: float
    difference: Interval


def differences_by_day(days: pd.DataFrame) -> list[DayDifference]:
    """Compare the variants on each day that both have views on, by the delta method, without CUPED.

    Parameters
    ----------
    days
        `Outcomes.days`.
    """
    found = []
    for day, rows in days.groupby("day"):
        both = {bool(row[IN_TEST]): _rate(row) for _, row in rows.iterrows()}
        control, test = both.get(False), both.get(True)
        if control is None or test is None:
            continue
        value, error = test[0] - control[0], float(np.hypot(test[1], control[1]))
        # norm.interval wants a spread, and none is told by a day without likes.
        bounds = stats.norm.interval(CONFIDENCE, value, error) if error > 0 else (value, value)
        interval = Interval(value, float(bounds[0]), float(bounds[1]))
        found.append(DayDifference(str(day), control[0], test[0], interval))
    return found


def _rate(row: pd.Series) -> tuple[float, float] | None:
    """Return likes per view and its standard error; None where it has none."""
    users, views = float(row["users"]), float(row["views"])
    if users < FEWEST_USERS or views == 0:
        return None
    rate = float(row["likes"]) / views
    squares = row["likes_likes"] - 2 * rate * row["views_likes"] + rate**2 * row["views_views"]
    variance = max(float(squares), 0.0) / (users - 1) * users
    return rate, variance**0.5 / views


IN_TEST = "in_test"
VIEWS, LIKES, DAYS, HITS = "views", "likes", "days", "hits"
COUNTS = (VIEWS, LIKES, DAYS, HITS)
BEFORE = "before_"


@dataclass(frozen=True)
class Metric:
    """Sum of `top` over the sum of `bottom`; over the number of users where there is no bottom."""

    name: str
    title: str
    top: str
    bottom: str | None

    def values(self, users: pd.DataFrame, before: bool = False) -> Float64s | None:
        """Return (users,) numbers whose mean is the metric and whose variance is the ratio's.

        That is the delta method (Deng, Knoblich and Lu, 2018): a user's number
        is r + (top - r * bottom) / mean(bottom), with r the ratio of the sums. A
        user without any gets r. None where the metric has no value.
        """
        prefix = BEFORE if before else ""
        top = users[prefix + self.top].to_numpy(np.float64)
        if self.bottom is None:
            return top if top.size else None
        bottom = users[prefix + self.bottom].to_numpy(np.float64)
        if bottom.sum() == 0:
            return None
        ratio = top.sum() / bottom.sum()
        return np.asarray(ratio + (top - ratio * bottom) / bottom.mean())


LIKE_RATE = Metric("like_rate", "likes per view", LIKES, VIEWS)
HITRATE = Metric("hitrate_at_5", "HitRate@5", HITS, DAYS)
LIKES_PER_USER = Metric("likes_per_user", "likes per user", LIKES, None)

METRICS = (LIKE_RATE, HITRATE, LIKES_PER_USER)
"""The first that has a value is the primary one: it alone decides, the others are looked at."""


BROKEN_BELOW = 0.001
"""So small that one sound experiment in a thousand is called broken (Fabijan et al., 2019)."""


@dataclass(frozen=True)
class SampleRatio:
    """Users found in each variant, and expected; `p_value` is None where all should be in one variant."""

    control: int
    test: int
    expected_control: float
    expected_test: float
    p_value: float | None

    @property
    def broken(self) -> bool:
        """Whether the split is not the one asked for."""
        if self.p_value is None:
            return (self.expected_control == 0 < self.control) or (self.expected_test == 0 < self.test)
        return self.p_value < BROKEN_BELOW


def sample_ratio(control: int, test: int, percent_test: int) -> SampleRatio:
    """Hold the users of each variant against the split, by the chi-square test."""
    users, share = control + test, percent_test / 100
    expected = (users * (1 - share), users * share)
    if min(expected) == 0:
        return SampleRatio(control, test, *expected, None)
    return SampleRatio(control, test, *expected, float(stats.chisquare([control, test], expected).pvalue))
