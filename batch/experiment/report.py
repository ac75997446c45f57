"""The report of an experiment: read once, judged by pure functions, told as text, JSON or a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import pandas as pd
import sqlalchemy as sa

from batch.experiment.by_day import DayDifference, differences_by_day
from batch.experiment.compare import Difference, compare
from batch.experiment.guard_rails import GuardRails, read_guard_rails
from batch.experiment.latency import Latencies, read_latencies
from batch.experiment.metrics import COUNTS, IN_TEST, LIKES, METRICS, VIEWS
from batch.experiment.outcomes import read_outcomes
from batch.experiment.period import Period
from batch.experiment.sample_ratio import SampleRatio, sample_ratio
from batch.experiment.verdict import Verdict, conclude
from batch.runs.tables import drained
from contract.experiment import CONTROL, TEST

WORTH = 0.05
"""The relative difference that is worth knowing of, unless the analyst says otherwise."""


@dataclass(frozen=True)
class Judgement:
    """What the users' numbers say; `differences` has a metric only where it has a value in both variants."""

    counts: dict[str, dict[str, int]]
    ratio: SampleRatio
    differences: tuple[Difference, ...]
    verdict: Verdict


@dataclass(frozen=True)
class Report:
    """All that is told of an experiment; `drained_at` is when exposures were last fetched from Redis."""

    period: Period
    judgement: Judgement
    guard_rails: Mapping[str, GuardRails]
    latencies: Latencies
    by_day: list[DayDifference]
    by_exposure: bool
    drained_at: datetime | None
    worth: float


def judge(users: pd.DataFrame, period: Period, worth: float = WORTH) -> Judgement:
    """Judge an experiment by its users' numbers.

    Parameters
    ----------
    users
        Row per user with the columns that `batch.experiment.metrics` names.
    """
    sums = {variant: users[users[IN_TEST] == (variant == TEST)][list(COUNTS)] for variant in (CONTROL, TEST)}
    counts = {
        variant: {"users": len(rows), VIEWS: int(rows[VIEWS].sum()), LIKES: int(rows[LIKES].sum())}
        for variant, rows in sums.items()
    }
    ratio = sample_ratio(len(sums[CONTROL]), len(sums[TEST]), period.split.experiment.percent_test)
    found = tuple(each for each in (compare(users, metric) for metric in METRICS) if each is not None)
    return Judgement(counts, ratio, found, conclude(period, ratio, found[0] if found else None, worth))


def report(connection: sa.Connection, period: Period, recorded: bool, worth: float = WORTH) -> Report:
    """Read and judge an experiment.

    Parameters
    ----------
    recorded
        Whether exposures are recorded at all; False takes views in their place.
    """
    outcomes = read_outcomes(connection, period, recorded)
    last_drain = sa.select(drained.c.at).where(drained.c.key_prefix == period.split.key_prefix)
    return Report(
        period=period,
        judgement=judge(outcomes.users, period, worth),
        guard_rails=read_guard_rails(connection, period, recorded),
        latencies=read_latencies(connection, period, recorded),
        by_day=differences_by_day(outcomes.days),
        by_exposure=outcomes.by_exposure,
        drained_at=connection.scalar(last_drain),
        worth=worth,
    )
