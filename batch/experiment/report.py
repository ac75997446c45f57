"""The report of an experiment: read once, judged by pure functions, told as text, JSON or a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import pandas as pd
import sqlalchemy as sa

from batch.experiment.guardrails import GuardRails, Latencies, read_guard_rails, read_latencies
from batch.experiment.outcomes import read_outcomes
from batch.experiment.period import Period
from batch.experiment.statistics import (
    COUNTS,
    IN_TEST,
    LIKES,
    METRICS,
    VIEWS,
    DayDifference,
    Difference,
    SampleRatio,
    compare,
    differences_by_day,
    sample_ratio,
)
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
        Row per user with the columns that `batch.experiment.statistics` names.
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


def record(report: Report) -> dict[str, Any]:
    """Return the report's fields; times in ISO 8601."""
    period, judgement = report.period, report.judgement
    experiment, ratio = period.split.experiment, judgement.ratio
    return {
        "experiment": {
            "name": experiment.name,
            "salt": experiment.salt,
            "percent_test": experiment.percent_test,
            "pinned_users": len(period.split.pinned),
        },
        "period": {
            "from": period.since.isoformat(),
            "until": period.until.isoformat(),
            "planned_end": period.planned_end.isoformat(),
            "days": period.days,
            "reached": period.reached,
            "before": [period.before_since.isoformat(), period.before_until.isoformat()],
        },
        "plan": {
            "days": period.planned_days,
            "at_begin": period.split.plan.at_begin,
            "changes": [{"at": at.isoformat(), "days": days} for at, days in period.split.plan.changes],
            "deviates": period.split.plan.deviates(period.planned_days),
            "sentence": period.split.plan.told(period.planned_days),
        },
        "population": "exposures" if report.by_exposure else "views",
        "exposures_drained_at": None if report.drained_at is None else report.drained_at.isoformat(),
        "verdict": asdict(judgement.verdict),
        "sample_ratio": asdict(ratio) | {"broken": ratio.broken},
        "variants": {
            variant: counts | {each.metric.name: _of(each, variant) for each in judgement.differences}
            for variant, counts in judgement.counts.items()
        },
        "metrics": [_metric(each, place == 0) for place, each in enumerate(judgement.differences)],
        "worth_knowing": report.worth,
        "guard_rails": {variant: asdict(rails) for variant, rails in report.guard_rails.items()}
        | {"latency": asdict(report.latencies)},
        "by_day": [asdict(day) for day in report.by_day],
    }


def _of(difference: Difference, variant: str) -> float:
    value: float = getattr(difference, variant)
    return value


def _metric(difference: Difference, primary: bool) -> dict[str, Any]:
    fields = asdict(difference)
    metric = fields.pop("metric")
    return {"metric": metric["name"], "title": metric["title"], "primary": primary, **fields}
