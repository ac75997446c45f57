"""The difference day by day: an effect that fades is one of novelty, one that grows had to be learnt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from batch.experiment.compare import CONFIDENCE, FEWEST_USERS, Interval
from batch.experiment.metrics import IN_TEST


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
