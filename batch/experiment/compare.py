"""The difference between test and control in one metric, with what its interval rests on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from batch.experiment.metrics import IN_TEST, Floats, Metric

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
        Row per user with the columns that `batch.experiment.metrics` names.
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
    control: Floats, test: Floats, before: Floats | None, in_test: np.ndarray
) -> tuple[Floats, Floats]:
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


def _welch(control: Floats, test: Floats) -> _Welch:
    found = stats.ttest_ind(test, control, equal_var=False)
    bounds = found.confidence_interval(CONFIDENCE)
    value = float(test.mean() - control.mean())
    standard_error = float(np.sqrt(sum(each.var(ddof=1) / each.size for each in (control, test))))
    interval = Interval(value, float(bounds.low), float(bounds.high))
    return _Welch(interval, float(found.pvalue), standard_error)


def _relative(control: Floats, test: Floats) -> Interval | None:
    """Return mean(test) / mean(control) - 1 by the delta method: a ratio of means, made linear once more."""
    base = float(control.mean())
    if base <= 0:
        return None
    ratio = float(test.mean()) / base
    linear = _welch(ratio * control / base, test / base).interval  # its value is 0
    return Interval(ratio - 1, ratio - 1 + linear.low, ratio - 1 + linear.high)
