"""When the night is due: five cron fields, read the way cron reads them.

APScheduler searches the calendar, but its own reading of a crontab line differs
from cron's: it counts weekdays from Monday, wants both the day of the month and
the weekday to match, and loops where a clock goes back. So the fields are
spelled out as plain numbers here, and the search runs on the wall clock; only
its result is turned into a moment.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger

from contract.errors import OvernightError

CLOCK_CHANGE = timedelta(hours=3)
"""More than any daylight saving shift."""

INSTANT = timedelta(microseconds=1)

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")

PART = re.compile(r"(?:\*|(?P<first>[0-9]+|[a-z]+)(?:-(?P<last>[0-9]+|[a-z]+))?)(?:/(?P<step>[0-9]+))?")


@dataclass(frozen=True)
class CronField:
    """One of the five fields: its lowest and highest number, and the names from `low` up."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()

    def parse(self, text: str) -> list[int]:
        """Return the numbers that lists, ranges, steps and names in `text` stand for.

        Raises
        ------
        ValueError
            Names the field and the part that cannot be read.
        """
        found: set[int] = set()
        for part in text.lower().split(","):
            match = PART.fullmatch(part)
            if match is None:
                raise ValueError(f"{part!r} is no {self.name}")
            first = self._number(match["first"]) if match["first"] else self.low
            open_ended = match["first"] is None or (match["step"] and not match["last"])
            last = self.high if open_ended else self._number(match["last"] or match["first"])
            step = int(match["step"] or 1)
            if first > last or step == 0:
                raise ValueError(f"{part!r} holds no {self.name}")
            found.update(range(first, last + 1, step))
        return sorted(found)

    def _number(self, text: str) -> int:
        if text in self.names:
            return self.low + self.names.index(text)
        if not text.isdigit() or not self.low <= int(text) <= self.high:
            raise ValueError(f"{text!r} is no {self.name} ({self.low} to {self.high})")
        return int(text)


MINUTE = CronField("minute", 0, 59)
HOUR = CronField("hour", 0, 23)
DAY = CronField("day of the month", 1, 31)
MONTH = CronField("month", 1, 12, MONTHS)
WEEKDAY = CronField("weekday", 0, 7, WEEKDAYS)


class CronSchedule(BaseTrigger):  # type: ignore[misc]  # APScheduler carries no types
    """A cron expression in a time zone, as APScheduler's trigger and on its own.

    A time that the clock jumps over in spring is due an hour later; a time that
    the clock passes twice in autumn is due the first time only.

    Raises
    ------
    ValueError
        If the expression cannot be read or never fires, like 30 February.
    """

    def __init__(self, expression: str, timezone: str) -> None:
        self.zone = ZoneInfo(timezone)
        self._walls = _wall_clock_trigger(expression)
        if self._walls.get_next_fire_time(None, datetime(2000, 1, 1, tzinfo=UTC)) is None:
            raise ValueError("never fires: no month in it has such a day")

    def next_after(self, moment: datetime) -> datetime:
        """Return the first due time later than `moment`, in the schedule's time zone."""
        wall = moment.astimezone(self.zone).replace(tzinfo=UTC, fold=0) - CLOCK_CHANGE
        while True:
            wall = self._walls.get_next_fire_time(None, wall + INSTANT)
            due: datetime = wall.replace(tzinfo=self.zone).astimezone(UTC)
            if due > moment:
                return due.astimezone(self.zone)

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """Return when APScheduler is to fire next: after the last time, or from now on."""
        return self.next_after(previous_fire_time or now - INSTANT)


def missed(schedule: CronSchedule, last_started_at: datetime, now: datetime) -> datetime | None:
    """Return the first time due after the last run started, if that time has come."""
    due = schedule.next_after(last_started_at)
    return due if due <= now else None


def _wall_clock_trigger(expression: str) -> OrTrigger:
    """Build a trigger whose times are wall-clock times, written as if they were UTC.

    As in cron, a day matches if either the day of the month or the weekday
    does, unless one of the two fields begins with an asterisk.
    """
    minute, hour, day, month, weekday = expression.split()
    clock = {"minute": _join(MINUTE.parse(minute)), "hour": _join(HOUR.parse(hour))}
    clock["month"] = _join(MONTH.parse(month))
    days = {"day": _join(DAY.parse(day))}
    weekdays = {"day_of_week": _join([(number - 1) % 7 for number in WEEKDAY.parse(weekday)])}
    both = day.startswith("*") or weekday.startswith("*")
    choices = [days | weekdays] if both else [days, weekdays]
    return OrTrigger([CronTrigger(**clock, **choice, timezone=UTC) for choice in choices])


def _join(numbers: list[int]) -> str:
    return ",".join(map(str, numbers))


log = logging.getLogger(__name__)

LatestLive = Callable[[], datetime | None]
"""When a run last went live, None if there is no run; raises OvernightError."""


def late_night(
    schedule: CronSchedule, latest_live: datetime, now: datetime, after: timedelta
) -> datetime | None:
    """Return when the newest night was due that is late, None if none is.

    A night is late when no run has gone live from its due time on, and that
    time was at least `after` ago.
    """
    newest, due = None, missed(schedule, latest_live, now - after)
    while due is not None:
        newest, due = due, missed(schedule, due, now - after)
    return newest


class LateWatch:
    """Says once of each night that it is late, and once that a run has gone live after all.

    What was said is not kept: a scheduler that starts anew says it once more.

    Parameters
    ----------
    after
        How long after its due time a night is late.
    tell_late, tell_mended
        Take a sentence.
    """

    def __init__(
        self,
        schedule: CronSchedule,
        after: timedelta,
        latest_live: LatestLive,
        tell_late: Callable[[str], None],
        tell_mended: Callable[[str], None],
    ) -> None:
        self._schedule, self._after, self._latest_live = schedule, after, latest_live
        self._tell_late, self._tell_mended = tell_late, tell_mended
        self._known: datetime | None = None
        self._told: datetime | None = None

    def look(self, now: datetime) -> None:
        """Look whether anything is to be said; asks the ledger only where that may change the answer."""
        if self._known is not None and self._told is None and self._late(self._known, now) is None:
            return
        try:
            self._known = self._latest_live() or self._known
        except OvernightError as error:
            log.warning("cannot ask the ledger whether a night is late: %s", error)
        if self._known is None:
            return
        live = self._local(self._known)
        if self._told is not None and self._known >= self._told:
            log.info("a run went live at %s, after the night of %s was late", live, self._local(self._told))
            self._tell_mended(f"a run went live at {live}")
            self._told = None
        late = self._late(self._told or self._known, now)
        if late is not None:
            reason = f"the night of {self._local(late)} is late: no run has gone live since {live}"
            log.error("%s", reason)
            self._tell_late(reason)
            self._told = late

    def _late(self, since: datetime, now: datetime) -> datetime | None:
        return late_night(self._schedule, since, now, self._after)

    def _local(self, moment: datetime) -> str:
        return moment.astimezone(self._schedule.zone).isoformat(timespec="seconds")
