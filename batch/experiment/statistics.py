"""Statistics of an experiment: metrics, their differences with intervals, and the sample ratio test.

Each metric is a ratio of sums over users, or a mean over them. The frames have a
row per user and these columns; those of the time before the experiment have the
prefix `before_`.

in_test   bool, the variant that the user was assigned to
views     views since the user's first exposure
likes     likes since then
days      days (UTC) on which the user viewed a post
hits      of those days, the ones on which one of the first five viewed posts was liked after its view
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from batch.arrays import Float64s

CONFIDENCE = 0.95
SIGNIFICANCE = 1 - CONFIDENCE
POWER = 0.8

MIN_USERS = 2
"""Fewest users of a variant; fewer have no variance."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """The difference of one metric, test minus control.

    Attributes
    ----------
    control, test
        The metric in each variant, not adjusted.
    absolute, relative
        The difference after CUPED, and relative to control's value (None if that is 0).
    unadjusted
        The absolute difference without CUPED.
    p_value
        Two-sided, of the adjusted difference, by Welch's test.
    variance_reduction
        Share of the difference's variance that CUPED removed.
    detectable
        Minimum detectable absolute difference at 80 % power.
    detectable_relative
        The same relative to control's value; None if that is 0.
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


def compare_metric(users: pd.DataFrame, metric: Metric) -> Difference | None:
    """Compare the variants in one metric; None if a variant has no value or no variance.

    Parameters
    ----------
    users
        Row per user with the columns that `batch.experiment.statistics` names.
    """
    in_test = users[IN_TEST].to_numpy(bool)
    control, test = (metric.values(users[chosen]) for chosen in (~in_test, in_test))
    if control is None or test is None or min(control.size, test.size) < MIN_USERS:
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
    """Subtract from each user's value what the same metric before the experiment predicts.

    CUPED (Deng, Xu, Kohavi and Walker, 2013). The slope is the pooled slope
    within the variants; values stay as they are if there was no activity before.
    """
    if before is None or np.ptp(before) == 0:
        return control, test
    centred = before - before.mean()
    by_variant = (centred[~in_test], centred[in_test])
    deviations = [values - values.mean() for values in by_variant]
    covariance = sum(
        float(deviation @ (values - values.mean()))
        for deviation, values in zip(deviations, (control, test), strict=True)
    )
    variance = sum(float(deviation @ deviation) for deviation in deviations)
    slope = covariance / max(variance, np.finfo(float).tiny)
    return control - slope * by_variant[0], test - slope * by_variant[1]


@dataclass(frozen=True)
class _Welch:
    interval: Interval
    p_value: float
    standard_error: float


def _welch(control: Float64s, test: Float64s) -> _Welch:
    with warnings.catch_warnings():  # scipy doubts its figures if a variant has one value for all its users
        warnings.simplefilter("ignore", RuntimeWarning)
        found = stats.ttest_ind(test, control, equal_var=False)
    bounds = found.confidence_interval(CONFIDENCE)
    value = float(test.mean() - control.mean())
    standard_error = float(np.sqrt(sum(each.var(ddof=1) / each.size for each in (control, test))))
    interval = Interval(value, float(bounds.low), float(bounds.high))
    return _Welch(interval, float(found.pvalue), standard_error)


def _relative(control: Float64s, test: Float64s) -> Interval | None:
    """Return mean(test) / mean(control) - 1 with its interval by the delta method: a linearised ratio."""
    base = float(control.mean())
    if base <= 0:
        return None
    ratio = float(test.mean()) / base
    linear = _welch(ratio * control / base, test / base).interval  # its value is 0
    return Interval(ratio - 1, ratio - 1 + linear.low, ratio - 1 + linear.high)


@dataclass(frozen=True)
class DayDifference:
    """Likes per view on a day (ISO date, UTC), test minus control, of the users who acted on that day."""

    day: str
    control: float
    test: float
    difference: Interval


def compare_days(days: pd.DataFrame) -> list[DayDifference]:
    """Compare the variants on each day on which both have views, by the delta method, without CUPED.

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
        # norm.interval needs a positive standard error; a day without likes has none.
        found.append(DayDifference(str(day), control[0], test[0], normal_interval(value, error)))
    return found


def normal_interval(value: float, error: float) -> Interval:
    """Return the normal interval of a value with a standard error; without an error it has no width."""
    low, high = stats.norm.interval(CONFIDENCE, value, error) if error > 0 else (value, value)
    return Interval(value, float(low), float(high))


def _rate(row: pd.Series) -> tuple[float, float] | None:
    """Return (likes per view, its standard error); None if there are too few users or no views."""
    users, views = float(row["users"]), float(row["views"])
    if users < MIN_USERS or views == 0:
        return None
    rate = float(row["likes"]) / views
    squares = row["likes_likes"] - 2 * rate * row["views_likes"] + rate**2 * row["views_views"]
    variance = max(float(squares), 0.0) / (users - 1) * users
    return rate, variance**0.5 / views


IN_TEST = "in_test"
VIEWS, LIKES, DAYS, HITS = "views", "likes", "days", "hits"
COUNTS = (VIEWS, LIKES, DAYS, HITS)
BEFORE_PREFIX = "before_"
"""Prefix of the columns that hold the same counts in the time before the experiment."""


@dataclass(frozen=True)
class Metric:
    """Sum of `numerator` / sum of `denominator`; the number of users divides if there is no denominator."""

    name: str
    title: str
    numerator: str
    denominator: str | None

    def values(self, users: pd.DataFrame, before: bool = False) -> Float64s | None:
        """Return (users,) values whose mean is the metric and whose variance is the ratio's.

        That is the delta method (Deng, Knoblich and Lu, 2018): a user's value
        is r + (numerator - r * denominator) / mean(denominator), with r the
        ratio of the sums. A user without actions gets r. None if the metric
        has no value.
        """
        prefix = BEFORE_PREFIX if before else ""
        numerator = users[prefix + self.numerator].to_numpy(np.float64)
        if self.denominator is None:
            return numerator if numerator.size else None
        denominator = users[prefix + self.denominator].to_numpy(np.float64)
        if denominator.sum() == 0:
            return None
        ratio = numerator.sum() / denominator.sum()
        return np.asarray(ratio + (numerator - ratio * denominator) / denominator.mean())


LIKE_RATE = Metric("like_rate", "likes per view", LIKES, VIEWS)
HITRATE = Metric("hitrate_at_5", "HitRate@5", HITS, DAYS)
LIKES_PER_USER = Metric("likes_per_user", "likes per user", LIKES, None)

METRICS = (LIKE_RATE, HITRATE, LIKES_PER_USER)
"""The first that has a value is the primary metric: it alone decides; the others are for understanding."""


SRM_SIGNIFICANCE = 0.001
"""At this level one sound experiment in a thousand is reported as broken (Fabijan et al., 2019)."""


@dataclass(frozen=True)
class SampleRatio:
    """Users counted and expected in each variant; `p_value` is None if the split puts all in one variant."""

    control: int
    test: int
    expected_control: float
    expected_test: float
    p_value: float | None

    @property
    def broken(self) -> bool:
        """Whether the users are not split as configured (sample ratio mismatch)."""
        if self.p_value is None:
            return (self.expected_control == 0 < self.control) or (self.expected_test == 0 < self.test)
        return self.p_value < SRM_SIGNIFICANCE


def check_sample_ratio(control: int, test: int, percent_test: int) -> SampleRatio:
    """Test the users of each variant against the split with a chi-square test."""
    users, share = control + test, percent_test / 100
    expected = (users * (1 - share), users * share)
    if min(expected) == 0:
        return SampleRatio(control, test, *expected, None)
    return SampleRatio(control, test, *expected, float(stats.chisquare([control, test], expected).pvalue))
