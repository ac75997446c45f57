"""The report of an experiment: reads it once and analyses it by pure functions; `render` lays it out.

The verdict is one or two sentences, see `conclude`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import pandas as pd
import sqlalchemy as sa

from batch.experiment.explored import ExploredOutcome, read_explored_outcomes
from batch.experiment.guardrails import Guardrails, LatencyComparison, read_guardrails, read_latencies
from batch.experiment.outcomes import read_outcomes
from batch.experiment.period import MIN_EFFECT, Period, format_more_days
from batch.experiment.statistics import (
    COUNTS,
    IN_TEST,
    LIKES,
    METRICS,
    SIGNIFICANCE,
    VIEWS,
    DayDifference,
    Difference,
    SampleRatio,
    check_sample_ratio,
    compare_days,
    compare_metric,
)
from batch.runs.tables import drained
from contract.experiment import CONTROL, TEST


@dataclass(frozen=True)
class Analysis:
    """What the users' numbers show; `differences` has the metrics that have a value in both variants."""

    counts: dict[str, dict[str, int]]
    ratio: SampleRatio
    differences: tuple[Difference, ...]
    verdict: Verdict


@dataclass(frozen=True)
class Report:
    """All parts of the report.

    Attributes
    ----------
    unknown_ids
        See `Outcomes`.
    drained_at
        When exposures were last moved from Redis to Postgres.
    explored
        Variant -> what explored places earned; None if no list had one.
    """

    period: Period
    analysis: Analysis
    guardrails: Mapping[str, Guardrails]
    latencies: LatencyComparison
    by_day: list[DayDifference]
    by_exposure: bool
    unknown_ids: int
    drained_at: datetime | None
    min_effect: float
    explored: Mapping[str, ExploredOutcome] | None = None

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
            "unknown_ids": self.unknown_ids,
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
        } | self._explored_fields()

    def _explored_fields(self) -> dict[str, Any]:
        if self.explored is None:
            return {}
        return {"explored_places": {variant: asdict(each) for variant, each in self.explored.items()}}


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
        unknown_ids=outcomes.unknown_ids,
        drained_at=connection.scalar(last_drain),
        min_effect=min_effect,
        explored=read_explored_outcomes(connection, period, exposures_recorded),
    )


def _value_in(difference: Difference, variant: str) -> float:
    value: float = getattr(difference, variant)
    return value


def _metric_fields(difference: Difference, primary: bool) -> dict[str, Any]:
    fields = asdict(difference)
    metric = fields.pop("metric")
    return {"metric": metric["name"], "title": metric["title"], "primary": primary, **fields}


class Outcome(StrEnum):
    """What the report concludes."""

    EMPTY = "empty"
    """There is nothing to compare."""
    VOID = "void"
    """Sample ratio mismatch: no figure can be trusted."""
    EARLY = "early"
    """Before the planned end: the figures are preliminary."""
    UNDECIDED = "undecided"
    """At the planned end, no significant difference."""
    DECIDED = "called"
    """At the planned end, one variant is better."""


@dataclass(frozen=True)
class Verdict:
    """The outcome, the winner (None unless decided) and a sentence for people.

    `days_needed` is how many more days the primary metric needs until
    `min_effect` is detectable at 80 % power, if each day brings as much data
    as those so far; None if that cannot be computed.
    """

    outcome: Outcome
    winner: str | None
    sentence: str
    days_needed: int | None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields of the report's JSON."""
        return {
            "standing": self.outcome,
            "winner": self.winner,
            "sentence": self.sentence,
            "days_more": self.days_needed,
        }


def conclude(period: Period, ratio: SampleRatio, primary: Difference | None, min_effect: float) -> Verdict:
    """Conclude what the figures support, and no more.

    Parameters
    ----------
    min_effect
        Smallest relative difference that matters, such as 0.02.
    """
    if ratio.broken:
        return Verdict(Outcome.VOID, None, _describe_void(ratio), None)
    if primary is None:
        return Verdict(Outcome.EMPTY, None, _describe_empty(period, ratio), None)
    days = count_days_needed(period, primary, min_effect)
    if not period.reached:
        return Verdict(Outcome.EARLY, None, _describe_early(period, primary), days)
    if primary.p_value >= SIGNIFICANCE:
        return Verdict(Outcome.UNDECIDED, None, _describe_undecided(primary, min_effect, days), days)
    winner = TEST if primary.absolute.value > 0 else CONTROL
    return Verdict(Outcome.DECIDED, winner, _describe_decided(primary, winner), days)


def count_days_needed(period: Period, primary: Difference, min_effect: float) -> int | None:
    """Return how many more days until `min_effect` is detectable: the variance falls as 1 / days."""
    if primary.detectable_relative is None:
        return None
    needed = period.days * (primary.detectable_relative / min_effect) ** 2
    return max(0, math.ceil(needed - period.days - 1e-9))


def _describe_void(ratio: SampleRatio) -> str:
    chance = "" if ratio.p_value is None else f" (chance alone does that with p = {ratio.p_value:.1g})"
    return (
        f"Nothing can be concluded: {ratio.control:,} users are in control and {ratio.test:,} in test, but "
        f"{ratio.expected_control:,.0f} and {ratio.expected_test:,.0f} were expected{chance}. Users are lost "
        "or added in one variant, so the two groups are not comparable. Find the cause before you use any "
        "figure."
    )


def _describe_empty(period: Period, ratio: SampleRatio) -> str:
    everyone = {0: CONTROL, 100: TEST}.get(period.split.experiment.percent_test)
    if everyone is not None:
        return (
            f"There is nothing to compare: since {_format_time(period.split.since)} the split puts everyone "
            f"in {everyone}. To analyse the split before that, give --until with that time or an earlier one."
        )
    return (
        f"There is nothing to compare yet: {ratio.control:,} users in control and {ratio.test:,} in test, "
        "and no metric has a value and a variance in both."
    )


def _describe_early(period: Period, primary: Difference) -> str:
    if period.split.ended is not None and period.split.ended < period.verdict_from:
        return (
            f"No winner may be named: the experiment was ended on {_format_time(period.split.ended)}, before "
            f"its planned end. {_capitalise(_describe_difference(primary))}. Stopping at a favourable moment "
            "gives a false winner far more often than in 5 % of experiments."
        )
    planned = (period.verdict_from - period.since) / timedelta(days=1)
    return (
        f"Too early to name a winner: {period.days:.1f} of {planned:.1f} days are counted; one may be named "
        f"from {_format_time(period.verdict_from)} on. So far {_describe_difference(primary)}. This is "
        "preliminary: checking every day and stopping at the first significant result gives a false winner "
        "far more often than in 5 % of experiments."
    )


def _describe_undecided(primary: Difference, min_effect: float, days: int | None) -> str:
    missing = ""
    if primary.detectable_relative is not None and days:
        missing = (
            " The minimum detectable difference at 80 % power was "
            f"{100 * primary.detectable_relative:.1f} %; {100 * min_effect:.1f} % would have needed about "
            f"{format_more_days(days)}."
        )
    return (
        f"No winner: {_describe_difference(primary)}, an interval that contains 0.{missing} "
        "This does not prove that the two are equal: any difference within the interval is possible."
    )


def _describe_decided(primary: Difference, winner: str) -> str:
    chance = "p < 0.0001" if primary.p_value < 0.0001 else f"p = {primary.p_value:.2g}"
    return (
        f"{winner.capitalize()} wins: {_describe_difference(primary)} ({chance}). This holds for "
        f"{primary.metric.title} of these users in this period. The other metrics help to understand it; do "
        "not name a winner by them."
    )


def _describe_difference(primary: Difference) -> str:
    found = primary.absolute
    relative = "" if primary.relative is None else f" ({100 * primary.relative.value:+.1f} %)"
    return (
        f"test minus control in {primary.metric.title} is {found.value:+.4f}{relative}, 95 % interval "
        f"{found.low:+.4f} to {found.high:+.4f}"
    )


def _capitalise(text: str) -> str:
    return text[0].upper() + text[1:]


def _format_time(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
