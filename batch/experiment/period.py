"""From when to when an experiment is judged: since its split last changed, until its planned end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise, takewhile

from batch.experiment.history import Recorded
from contract.errors import EXIT_USAGE, OvernightError
from contract.experiment import Experiment

DAYS_PLANNED = 14
"""Two whole weeks, where nothing else was planned."""

BEFORE = timedelta(days=14)
"""How much of the time before the experiment CUPED looks at."""


class ExperimentError(OvernightError):
    """Raised when there is no such experiment, or no such part of one."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Split:
    """A stretch of time in which the split did not change (aware times).

    Attributes
    ----------
    experiment
        Without its pins.
    since
        When name, salt and percentage became what they are.
    ended
        When another split took its place; None while it is in force.
    untouched_until
        When the salt was first used: what users did before cannot come from
        this experiment, even if its percentage was another then.
    pinned
        Users who were pinned to a variant at any time of the stretch.
    plan
        How long it was to last.
    key_prefix
        Under which serving notes who was served what.
    """

    experiment: Experiment
    since: datetime
    ended: datetime | None
    untouched_until: datetime
    pinned: tuple[int, ...]
    plan: Plan
    key_prefix: str

    @property
    def planned_end(self) -> datetime | None:
        """Until when it was to last, by what was recorded last."""
        days = self.plan.in_force
        return None if days is None else self.since + timedelta(days=days)


@dataclass(frozen=True)
class Period:
    """What is counted: since <= time < until. Nothing may be concluded before `verdict_from`."""

    split: Split
    since: datetime
    until: datetime
    planned_end: datetime

    @property
    def days(self) -> float:
        """How long it is."""
        return (self.until - self.since) / timedelta(days=1)

    @property
    def planned_days(self) -> float:
        """How long the experiment is taken to last."""
        return (self.planned_end - self.split.since) / timedelta(days=1)

    @property
    def before_since(self) -> datetime:
        """Begin of the time before the experiment."""
        return self.before_until - BEFORE

    @property
    def before_until(self) -> datetime:
        """End of the time before the experiment."""
        return min(self.split.untouched_until, self.since)

    @property
    def verdict_from(self) -> datetime:
        """When a winner may be named: at the planned end, and no sooner than was planned when it began."""
        at_begin = self.split.plan.at_begin
        if at_begin is None:
            return self.planned_end
        return max(self.planned_end, self.split.since + timedelta(days=at_begin))

    @property
    def reached(self) -> bool:
        """Whether a winner may be named."""
        return self.until >= self.verdict_from


def find_split(changes: Sequence[Recorded], name: str | None, until: datetime | None = None) -> Split:
    """Return the split in force, or the last one that had the name and began before `until`.

    `changes` has the newest first.

    Raises
    ------
    ExperimentError
        There is none.
    """
    if not changes:
        raise ExperimentError("no experiment was set yet; `python -m batch experiment set` starts one")
    named = [place for place, each in enumerate(changes) if name in (None, each.experiment.name)]
    if not named:
        names = ", ".join(sorted({each.experiment.name for each in changes}))
        raise ExperimentError(f"there was no experiment {name!r}; there are {names}")
    begun = [place for place in named if until is None or changes[place].set_at < until]
    newest = (begun or named)[0]
    split = replace(changes[newest].experiment, pins={})
    stretch = list(takewhile(lambda each: replace(each.experiment, pins={}) == split, changes[newest:]))
    return Split(
        experiment=split,
        since=stretch[-1].set_at,
        ended=changes[newest - 1].set_at if newest else None,
        untouched_until=min(each.set_at for each in changes if each.experiment.salt == split.salt),
        pinned=tuple(sorted({user for each in stretch for user in each.experiment.pins})),
        plan=plan_of(stretch[::-1]),
        key_prefix=changes[newest].key_prefix,
    )


def period(
    split: Split,
    now: datetime,
    since: datetime | None = None,
    until: datetime | None = None,
    planned: timedelta | datetime | None = None,
) -> Period:
    """Bound what is counted; what comes after the planned end is left out, so that nobody waits for luck.

    Parameters
    ----------
    planned
        How long the experiment was to be, or when it was to end. Unless given:
        what was recorded, or 14 days.

    Raises
    ------
    ExperimentError
        The times asked for do not lie within the experiment.
    """
    begin = since or split.since
    if begin < split.since:
        raise ExperimentError(
            f"the split is what it is since {_told(split.since)} only; --from must not be earlier, and "
            "--until counts in the split that was in force until then"
        )
    if planned is None:
        planned = timedelta(days=split.plan.in_force or DAYS_PLANNED)
    end = split.since + planned if isinstance(planned, timedelta) else planned
    latest = min(each for each in (until, split.ended, now, end) if each is not None)
    if latest <= begin:
        raise ExperimentError(f"nothing to count: the time from {_told(begin)} to {_told(latest)} is empty")
    return Period(split, begin, latest, end)


def _told(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Plan:
    """The days that were planned, from when the split was set.

    Attributes
    ----------
    at_begin
        What was recorded when the split was set, None if nothing.
    changes
        What was recorded afterwards, oldest first: when, and how many days.
    """

    at_begin: int | None = None
    changes: tuple[tuple[datetime, int], ...] = ()

    @property
    def in_force(self) -> int | None:
        """The days recorded last."""
        return self.changes[-1][1] if self.changes else self.at_begin

    def deviates(self, counted: float) -> bool:
        """Tell whether a report that counts with so many days does not go by a plan made beforehand."""
        return bool(self.changes) or (self.at_begin is not None and self.at_begin != counted)

    def told(self, counted: float) -> str:
        """Say what was planned and when, and with how many days the report counts."""
        if self.at_begin is None:
            text = "No plan was recorded when the experiment began"
        elif not self.deviates(counted):
            return f"The plan of {_days(self.at_begin)} was recorded when the experiment began."
        else:
            text = f"The plan recorded when the experiment began was {_days(self.at_begin)}"
        text += f"; this report counts with {_days(counted)}."
        return text + "".join(
            f" The plan was set to {_days(days)} on {at.astimezone(UTC):%Y-%m-%d %H:%M} UTC, "
            "after the experiment had begun."
            for at, days in self.changes
        )


def plan_of(stretch: Sequence[Recorded]) -> Plan:
    """Return what was planned while a split did not change; oldest change first."""
    changes = tuple(
        (now.set_at, now.planned_days)
        for before, now in pairwise(stretch)
        if now.planned_days is not None and now.planned_days != before.planned_days
    )
    return Plan(stretch[0].planned_days, changes)


def _days(count: float) -> str:
    return f"{count:g} day{'' if count == 1 else 's'}"
