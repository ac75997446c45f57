"""When a night is due, by a cron expression, and whether one is late."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from apscheduler.triggers.base import BaseTrigger
from cronsim import CronSim

from contract.errors import OvernightError

log = logging.getLogger(__name__)

MAX_CLOCK_CHANGE = timedelta(hours=3)
"""Longer than any daylight saving shift."""

INSTANT = timedelta(microseconds=1)


class CronSchedule(BaseTrigger):  # type: ignore[misc]  # APScheduler has no type hints
    """A cron expression of five fields in a time zone; also a trigger for APScheduler.

    cronsim reads the expression and searches the wall clock, without a time
    zone. Clock changes are handled here, because cronsim and cron itself move a
    skipped 02:30 to 03:00 and run some expressions twice in autumn: a time that
    the clock skips in spring is due an hour later; a time that the clock passes
    twice in autumn is due the first time only.
    Both are valid in the settings: `contract.settings` checks them.
    """

    def __init__(self, expression: str, timezone: str) -> None:
        self.zone = ZoneInfo(timezone)
        self._expression = expression

    def next_after(self, moment: datetime) -> datetime:
        """Return the first due time later than `moment`, in the schedule's time zone."""
        wall_clock = moment.astimezone(self.zone).replace(tzinfo=None, fold=0) - MAX_CLOCK_CHANGE
        for due_on_wall in CronSim(self._expression, wall_clock):
            due = due_on_wall.replace(tzinfo=self.zone).astimezone(UTC)
            if due > moment:
                return due.astimezone(self.zone)
        raise ValueError(f"{self._expression!r} is not due again after {moment.isoformat()}")

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """Return the first due time after the previous one, or from now on; APScheduler calls this."""
        return self.next_after(previous_fire_time or now - INSTANT)


def find_missed_night(schedule: CronSchedule, last_started_at: datetime, now: datetime) -> datetime | None:
    """Return the first time due after the start of the newest run if that time has passed, else None."""
    due = schedule.next_after(last_started_at)
    return due if due <= now else None


GetLatestLive = Callable[[], datetime | None]
"""Returns when a run last went live, None without a run; raises OvernightError."""


def find_late_night(
    schedule: CronSchedule, latest_live: datetime, now: datetime, late_after: timedelta
) -> datetime | None:
    """Return the due time of the newest late night, None if no night is late.

    A night is late if it was due at least `late_after` ago and no run has gone
    live since it was due.
    """
    newest, due = None, find_missed_night(schedule, latest_live, now - late_after)
    while due is not None:
        newest, due = due, find_missed_night(schedule, due, now - late_after)
    return newest


class LatenessMonitor:
    """Reports each late night once, and once that a run has gone live after it.

    Reported nights are kept in memory: a restarted scheduler reports a late night again.

    Parameters
    ----------
    late_after
        How long after its due time a night is late.
    on_late, on_recovered
        Called with the reason, one sentence.
    """

    def __init__(
        self,
        schedule: CronSchedule,
        late_after: timedelta,
        get_latest_live: GetLatestLive,
        *,
        on_late: Callable[[str], None],
        on_recovered: Callable[[str], None],
    ) -> None:
        self._schedule, self._late_after, self._get_latest_live = schedule, late_after, get_latest_live
        self._on_late, self._on_recovered = on_late, on_recovered
        self._latest_live: datetime | None = None
        self._reported_night: datetime | None = None

    def check(self, now: datetime) -> None:
        """Report a late night or a recovery; query the ledger only if its answer can change the report."""
        latest_live, reported = self._latest_live, self._reported_night
        if latest_live is not None and reported is None and self._find_late(latest_live, now) is None:
            return
        try:
            self._latest_live = self._get_latest_live() or latest_live
        except OvernightError as error:
            log.warning("cannot query the ledger for late nights: %s", error)
        if self._latest_live is None:
            return
        live = self._format_local(self._latest_live)
        if reported is not None and self._latest_live >= reported:
            log.info(
                "a run went live at %s, after the night of %s was late", live, self._format_local(reported)
            )
            self._on_recovered(f"a run went live at {live}")
            self._reported_night = None
        late = self._find_late(self._reported_night or self._latest_live, now)
        if late is not None:
            reason = f"the night of {self._format_local(late)} is late: no run has gone live since {live}"
            log.error("%s", reason)
            self._on_late(reason)
            self._reported_night = late

    def _find_late(self, since: datetime, now: datetime) -> datetime | None:
        return find_late_night(self._schedule, since, now, self._late_after)

    def _format_local(self, moment: datetime) -> str:
        return moment.astimezone(self._schedule.zone).isoformat(timespec="seconds")
