"""The period an experiment is analysed over: from the last change of its split to its planned end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise, takewhile

from batch.experiment.history import SplitChange
from batch.formatting import format_count
from contract.errors import EXIT_USAGE, OvernightError
from contract.experiment import Experiment, sort_pins

DEFAULT_DAYS = 14
"""Planned length if none was recorded: two whole weeks."""

COVARIATE_LENGTH = timedelta(days=14)
"""Length of the time before the experiment that CUPED uses."""


MIN_EFFECT = 0.05
"""Default of the smallest relative difference that matters."""


class ExperimentError(OvernightError):
    """Raised when an experiment, or the requested part of one, does not exist."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Plan:
    """The planned days, counted from when the split was set.

    Attributes
    ----------
    initial_days
        What was recorded when the split was set; None if nothing was.
    changes
        What was recorded afterwards, oldest first: (time, days).
    """

    initial_days: int | None = None
    changes: tuple[tuple[datetime, int], ...] = ()

    @property
    def current_days(self) -> int | None:
        """The days recorded last."""
        return self.changes[-1][1] if self.changes else self.initial_days

    def deviates(self, report_days: float) -> bool:
        """Return whether a report over `report_days` departs from the plan recorded at the start."""
        return bool(self.changes) or (self.initial_days is not None and self.initial_days != report_days)

    def describe(self, report_days: float) -> str:
        """Return what was planned and when, and how many days the report assumes."""
        if self.initial_days is None:
            text = "No plan was recorded when the experiment began"
        elif not self.deviates(report_days):
            return f"The plan of {_format_days(self.initial_days)} was recorded when the experiment began."
        else:
            text = f"The plan recorded when the experiment began was {_format_days(self.initial_days)}"
        text += f"; this report assumes {_format_days(report_days)}."
        return text + "".join(
            f" The plan was set to {_format_days(days)} on {at.astimezone(UTC):%Y-%m-%d %H:%M} UTC, "
            "after the experiment had begun."
            for at, days in self.changes
        )


@dataclass(frozen=True)
class SplitPeriod:
    """A time in which the split did not change (timezone-aware times).

    Attributes
    ----------
    experiment
        Without its pins.
    since
        When name, salt and percentage were set to their values.
    ended
        When another split replaced it; None while it is in force.
    untouched_until
        When the salt was first used. Actions before that time cannot be
        effects of this experiment, even under another percentage.
    pinned
        Ids, as text, of the users who were pinned to a variant at any time of the period.
    key_prefix
        Key prefix of its exposures.
    """

    experiment: Experiment
    since: datetime
    ended: datetime | None
    untouched_until: datetime
    pinned: tuple[str, ...]
    plan: Plan
    key_prefix: str

    @property
    def planned_end(self) -> datetime | None:
        """The end by the plan recorded last; None without a plan."""
        days = self.plan.current_days
        return None if days is None else self.since + timedelta(days=days)


@dataclass(frozen=True)
class Period:
    """The time that is counted, since <= time < until; no winner is named before `verdict_from`."""

    split: SplitPeriod
    since: datetime
    until: datetime
    planned_end: datetime

    @property
    def days(self) -> float:
        """Length in days."""
        return (self.until - self.since) / timedelta(days=1)

    @property
    def planned_days(self) -> float:
        """Length of the whole experiment that the report assumes, in days."""
        return (self.planned_end - self.split.since) / timedelta(days=1)

    @property
    def before_since(self) -> datetime:
        """Start of the time before the experiment that CUPED uses."""
        return self.before_until - COVARIATE_LENGTH

    @property
    def before_until(self) -> datetime:
        """End of the time before the experiment that CUPED uses."""
        return min(self.split.untouched_until, self.since)

    @property
    def verdict_from(self) -> datetime:
        """When a winner may be named: at the planned end, and not before the end planned at the start."""
        initial_days = self.split.plan.initial_days
        if initial_days is None:
            return self.planned_end
        return max(self.planned_end, self.split.since + timedelta(days=initial_days))

    @property
    def reached(self) -> bool:
        """Whether a winner may be named."""
        return self.until >= self.verdict_from


def find_split_period(
    changes: Sequence[SplitChange], name: str | None, until: datetime | None = None
) -> SplitPeriod:
    """Return the split in force, or the last one of that name, that began before `until`.

    Parameters
    ----------
    changes
        Newest first.

    Raises
    ------
    ExperimentError
        There is none.
    """
    if not changes:
        raise ExperimentError("no experiment was set yet; `python -m batch experiment set` starts one")
    named = [index for index, each in enumerate(changes) if name in (None, each.experiment.name)]
    if not named:
        names = ", ".join(sorted({each.experiment.name for each in changes}))
        raise ExperimentError(f"there was no experiment {name!r}; there are {names}")
    started = [index for index in named if until is None or changes[index].set_at < until]
    newest = (started or named)[0]
    split = replace(changes[newest].experiment, pins={})
    unchanged = list(takewhile(lambda each: replace(each.experiment, pins={}) == split, changes[newest:]))
    return SplitPeriod(
        experiment=split,
        since=unchanged[-1].set_at,
        ended=changes[newest - 1].set_at if newest else None,
        untouched_until=min(each.set_at for each in changes if each.experiment.salt == split.salt),
        pinned=tuple(sort_pins({user for each in unchanged for user in each.experiment.pins})),
        plan=_make_plan(unchanged[::-1]),
        key_prefix=changes[newest].key_prefix,
    )


def limit_period(
    split: SplitPeriod,
    now: datetime,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    planned: timedelta | datetime | None = None,
) -> Period:
    """Return the time to count; it stops at the planned end, so that waiting for luck gains nothing.

    Parameters
    ----------
    planned
        Planned length, or planned end. None takes what was recorded, or 14 days.

    Raises
    ------
    ExperimentError
        The given times are not within the experiment.
    """
    begin = since or split.since
    if begin < split.since:
        raise ExperimentError(
            f"the split has been in force since {_format_time(split.since)} only; --from must not be "
            "earlier; --until analyses the split that was in force until that time"
        )
    if planned is None:
        planned = timedelta(days=split.plan.current_days or DEFAULT_DAYS)
    end = split.since + planned if isinstance(planned, timedelta) else planned
    latest = min(each for each in (until, split.ended, now, end) if each is not None)
    if latest <= begin:
        raise ExperimentError(
            f"nothing to count: the time from {_format_time(begin)} to {_format_time(latest)} is empty"
        )
    return Period(split, begin, latest, end)


def format_more_days(days: int) -> str:
    """Format a number of further days."""
    return format_count(days, "more day")


def _make_plan(changes: Sequence[SplitChange]) -> Plan:
    """Return the plan of a time in which the split did not change; `changes` has the oldest first."""
    later = tuple(
        (now.set_at, now.planned_days)
        for before, now in pairwise(changes)
        if now.planned_days is not None and now.planned_days != before.planned_days
    )
    return Plan(changes[0].planned_days, later)


def _format_time(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds")


def _format_days(count: float) -> str:
    return f"{count:g} day{'' if count == 1 else 's'}"
