"""The report of an experiment: reads it once and analyses it by pure functions; `render` lays it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import pandas as pd
import sqlalchemy as sa

from batch.experiment.guardrails import Guardrails, LatencyComparison, read_guardrails, read_latencies
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
    check_sample_ratio,
    compare_days,
    compare_metric,
)
from batch.experiment.verdict import Verdict, conclude
from batch.runs.tables import drained
from contract.experiment import CONTROL, TEST

MIN_EFFECT = 0.05
"""Default of the smallest relative difference that matters."""


@dataclass(frozen=True)
class Analysis:
    """What the users' numbers show; `differences` has the metrics that have a value in both variants."""

    counts: dict[str, dict[str, int]]
    ratio: SampleRatio
    differences: tuple[Difference, ...]
    verdict: Verdict


@dataclass(frozen=True)
class Report:
    """All parts of the report; `drained_at` is when exposures were last moved from Redis to Postgres."""

    period: Period
    analysis: Analysis
    guardrails: Mapping[str, Guardrails]
    latencies: LatencyComparison
    by_day: list[DayDifference]
    by_exposure: bool
    drained_at: datetime | None
    min_effect: float

    def as_dict(self) -> dict[str, Any]:
        """Return the fields of `experiment report --json`; times in ISO 8601."""
        period, plan, analysis = self.period, self.period.split.plan, self.analysis
        experiment, ratio = period.split.experiment, analysis.ratio
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
                "at_begin": plan.initial_days,
                "changes": [{"at": at.isoformat(), "days": days} for at, days in plan.changes],
                "deviates": plan.deviates(period.planned_days),
                "sentence": plan.describe(period.planned_days),
            },
            "population": "exposures" if self.by_exposure else "views",
            "exposures_drained_at": None if self.drained_at is None else self.drained_at.isoformat(),
            "verdict": analysis.verdict.as_dict(),
            "sample_ratio": asdict(ratio) | {"broken": ratio.broken},
            "variants": {
                variant: counts
                | {each.metric.name: _value_in(each, variant) for each in analysis.differences}
                for variant, counts in analysis.counts.items()
            },
            "metrics": [_metric_fields(each, index == 0) for index, each in enumerate(analysis.differences)],
            "worth_knowing": self.min_effect,
            "guard_rails": {variant: asdict(values) for variant, values in self.guardrails.items()}
            | {"latency": asdict(self.latencies)},
            "by_day": [asdict(day) for day in self.by_day],
        }


def analyse(users: pd.DataFrame, period: Period, min_effect: float = MIN_EFFECT) -> Analysis:
    """Analyse an experiment from its users' numbers.

    Parameters
    ----------
    users
        Row per user with the columns that `batch.experiment.statistics` names.
    """
    rows = {variant: users[users[IN_TEST] == (variant == TEST)][list(COUNTS)] for variant in (CONTROL, TEST)}
    counts = {
        variant: {"users": len(each), VIEWS: int(each[VIEWS].sum()), LIKES: int(each[LIKES].sum())}
        for variant, each in rows.items()
    }
    ratio = check_sample_ratio(len(rows[CONTROL]), len(rows[TEST]), period.split.experiment.percent_test)
    compared = (compare_metric(users, metric) for metric in METRICS)
    differences = tuple(each for each in compared if each is not None)
    verdict = conclude(period, ratio, differences[0] if differences else None, min_effect)
    return Analysis(counts, ratio, differences, verdict)


def read_report(
    connection: sa.Connection, period: Period, exposures_recorded: bool, min_effect: float = MIN_EFFECT
) -> Report:
    """Read and analyse an experiment.

    Parameters
    ----------
    exposures_recorded
        Whether serving records exposures; if False, views replace them.
    """
    outcomes = read_outcomes(connection, period, exposures_recorded)
    last_drain = sa.select(drained.c.at).where(drained.c.key_prefix == period.split.key_prefix)
    return Report(
        period=period,
        analysis=analyse(outcomes.users, period, min_effect),
        guardrails=read_guardrails(connection, period, exposures_recorded),
        latencies=read_latencies(connection, period, exposures_recorded),
        by_day=compare_days(outcomes.days),
        by_exposure=outcomes.by_exposure,
        drained_at=connection.scalar(last_drain),
        min_effect=min_effect,
    )


def _value_in(difference: Difference, variant: str) -> float:
    value: float = getattr(difference, variant)
    return value


def _metric_fields(difference: Difference, primary: bool) -> dict[str, Any]:
    fields = asdict(difference)
    metric = fields.pop("metric")
    return {"metric": metric["name"], "title": metric["title"], "primary": primary, **fields}
