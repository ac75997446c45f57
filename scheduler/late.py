"""Whether a night is late, and saying so once: in the log, and to whoever is told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from contract.errors import OvernightError
from scheduler.cron import CronSchedule, missed

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
