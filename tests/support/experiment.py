"""What the tests of experiments share: users with known truths, and a period to judge them in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
from scipy import stats

from batch.experiment.period import Period, Plan, SplitPeriod
from batch.experiment.statistics import BEFORE_PREFIX, COUNTS, IN_TEST
from contract.experiment import VARIANTS, Experiment
from contract.exposures import Exposure
from contract.keys import Keys

START = datetime(2022, 1, 3, tzinfo=UTC)
PLANNED = timedelta(days=14)
SERVED_AT = datetime(2026, 11, 22, 12, tzinfo=UTC)


def a_period(days: float = 14, percent_test: int = 50, ended: datetime | None = None) -> Period:
    """Return a period of so many days of the fourteen that are planned."""
    experiment, plan = Experiment("first", "salt", percent_test), Plan(PLANNED.days)
    split = SplitPeriod(experiment, START, ended, START, (), plan, Keys().prefix)
    return Period(split, START, START + timedelta(days=days), START + PLANNED)


def draw_users(seed: int, users: int = 1_000, *, rate: float = 0.15, effect: float = 0.0) -> pd.DataFrame:
    """Draw users whose likes per view differ, and whose time before foretells them.

    A user's views and rate are correlated, which is what makes likes per view
    a ratio that no plain test fits. `effect` raises every rate in test by that
    share, so the true relative effect is `effect`.
    """
    random = np.random.default_rng(seed)
    taste = random.beta(3, 3 * (1 - rate) / rate, users)
    in_test = random.random(users) < 0.5
    lively = random.gamma(2, 10 * (1 + 2 * taste), users)
    frame = {IN_TEST: in_test}
    for prefix, raised in (("", 1 + effect * in_test), (BEFORE_PREFIX, np.ones(users))):
        views = random.poisson(lively)
        days = np.minimum(views, random.integers(1, 15, users))
        likes = random.binomial(views, np.minimum(taste * raised, 1))
        hits = random.binomial(days, np.minimum(2 * taste * raised, 1))
        values = dict(zip(COUNTS, (views, likes, days, hits), strict=True))
        frame |= {prefix + name: column for name, column in values.items()}
    return pd.DataFrame(frame)


def within_binomial_bounds(found: int, trials: int, share: float) -> bool:
    """Tell whether a count is one that chance gives in all but one of 100,000 cases."""
    low, high = stats.binom.interval(0.99999, trials, share)
    return bool(low <= found <= high)


def make_exposures(count: int, first: int = 1, served_at: datetime = SERVED_AT) -> list[Exposure]:
    """Make exposures of consecutive users, a millisecond apart; the variants alternate."""
    begin = served_at.timestamp()
    return [
        Exposure(user, variant, f"20261122T030000Z-{variant}", "personal", begin + user / 1000, 1.25)
        for user in range(first, first + count)
        for variant in [VARIANTS[user % 2]]
    ]
