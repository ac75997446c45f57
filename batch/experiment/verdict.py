"""What may be said of an experiment, in one plain sentence or two."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from batch.experiment.period import Period
from batch.experiment.statistics import SIGNIFICANCE, Difference, SampleRatio
from contract.experiment import CONTROL, TEST


class Standing(StrEnum):
    """How far an experiment has come."""

    EMPTY = "empty"
    """There is nothing to compare."""
    VOID = "void"
    """The split is broken: no figure can be trusted."""
    EARLY = "early"
    """Before the planned end: the figures are preliminary."""
    UNDECIDED = "undecided"
    """At the planned end no difference could be told."""
    CALLED = "called"
    """At the planned end one variant is better."""


@dataclass(frozen=True)
class Verdict:
    """The winner (None unless called) and what to tell people.

    `days_more` is how many days the primary metric still needs before a
    difference of the wanted size would be found with 80 % power, if each
    brings as much as those so far; None where that cannot be told.
    """

    standing: Standing
    winner: str | None
    sentence: str
    days_more: int | None


def conclude(period: Period, ratio: SampleRatio, primary: Difference | None, worth: float) -> Verdict:
    """Conclude what the figures allow, and no more.

    Parameters
    ----------
    worth
        The least relative difference that would be worth knowing of, such as 0.02.
    """
    if ratio.broken:
        return Verdict(Standing.VOID, None, _void(ratio), None)
    if primary is None:
        return Verdict(Standing.EMPTY, None, _empty(period, ratio), None)
    more = days_more(period, primary, worth)
    if not period.reached:
        return Verdict(Standing.EARLY, None, _early(period, primary), more)
    if primary.p_value >= SIGNIFICANCE:
        return Verdict(Standing.UNDECIDED, None, _undecided(primary, worth, more), more)
    winner = TEST if primary.absolute.value > 0 else CONTROL
    return Verdict(Standing.CALLED, winner, _called(primary, winner), more)


def days_more(period: Period, primary: Difference, worth: float) -> int | None:
    """Count the days until a relative difference of `worth` would be found: variance falls as 1 / days."""
    if primary.detectable_relative is None:
        return None
    needed = period.days * (primary.detectable_relative / worth) ** 2
    return max(0, math.ceil(needed - period.days - 1e-9))


def counted_days(more: int) -> str:
    """Write how many days are still needed."""
    return f"{more:,} more day{'' if more == 1 else 's'}"


def _void(ratio: SampleRatio) -> str:
    chance = "" if ratio.p_value is None else f" (chance alone does that with p = {ratio.p_value:.1g})"
    return (
        f"Nothing can be concluded: {ratio.control:,} users came to control and {ratio.test:,} to test, "
        f"where {ratio.expected_control:,.0f} and {ratio.expected_test:,.0f} were expected{chance}. Users "
        "are lost or added in one variant, so the two are not alike; find out why before reading any figure."
    )


def _empty(period: Period, ratio: SampleRatio) -> str:
    everyone = {0: CONTROL, 100: TEST}.get(period.split.experiment.percent_test)
    if everyone is not None:
        return (
            f"There is nothing to compare: since {_told(period.split.since)} the split puts everyone in "
            f"{everyone}. What was found before is counted by --until with that time or an earlier one."
        )
    return (
        f"There is nothing to compare yet: {ratio.control:,} users in control and {ratio.test:,} in test, "
        "and no metric that has a value and a spread in both."
    )


def _early(period: Period, primary: Difference) -> str:
    if period.split.ended is not None and period.split.ended < period.verdict_from:
        return (
            f"No winner may be named: the experiment was ended on {_told(period.split.ended)}, before its "
            f"planned end. {_lies(primary).capitalize()}. Whoever ends at a good moment is misled far more "
            "often than 5 %."
        )
    planned = (period.verdict_from - period.since) / timedelta(days=1)
    return (
        f"Too early to name a winner: {period.days:.1f} of {planned:.1f} days are counted, and one may be "
        f"named from {_told(period.verdict_from)} on. So far {_lies(primary)}. That is preliminary: whoever "
        "looks every day and stops at the first good one is misled far more often than 5 %."
    )


def _undecided(primary: Difference, worth: float, more: int | None) -> str:
    missing = ""
    if primary.detectable_relative is not None and more:
        missing = (
            f" What could be found with 80 % power was {100 * primary.detectable_relative:.1f} %; for "
            f"{100 * worth:.1f} % about {counted_days(more)} would have been needed."
        )
    return (
        f"No winner: {_lies(primary)}, and 0 lies between them.{missing} "
        "That is no proof that the two are alike: any difference within the interval may be there."
    )


def _called(primary: Difference, winner: str) -> str:
    chance = "p < 0.0001" if primary.p_value < 0.0001 else f"p = {primary.p_value:.2g}"
    return (
        f"{winner.capitalize()} wins: {_lies(primary)} ({chance}). That holds for {primary.metric.title} of "
        "these users in this time; the other metrics are to understand it by, not to be called as well."
    )


def _lies(primary: Difference) -> str:
    found = primary.absolute
    share = "" if primary.relative is None else f" ({100 * primary.relative.value:+.1f} %)"
    return (
        f"{primary.metric.title} of test differ from control's by {found.value:+.4f}{share}, with 95 % "
        f"confidence by between {found.low:+.4f} and {found.high:+.4f}"
    )


def _told(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
