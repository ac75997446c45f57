"""What the scheduler has to tell people: lateness, and what a child that died could not tell itself."""

from __future__ import annotations

from batch.alerts.alert import Alert, Event, Job, send
from contract import errors
from contract.settings import Settings
from scheduler.job import Ended

TELLS_ITSELF = (errors.EXIT_DONE, errors.EXIT_FAILED, errors.EXIT_USAGE, errors.EXIT_REFUSED)
"""Exit codes after which nothing is left to say: `batch run` sends its own alerts."""

REFRESHES_IN_A_ROW = 3
"""So many must fail before anybody is told: one that fails is made up for by the next."""


class Alarm:
    """Sends alerts to the webhook of the settings, if there is one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._failed_refreshes = 0

    def night_ended(self, ended: Ended) -> None:
        """Tell of a night that was killed, could not be started, or found the lock held."""
        if ended.code in TELLS_ITSELF:
            return
        event = Event.RUN_LOCKED if ended.code == errors.EXIT_LOCKED else Event.RUN_FAILED
        job = None if ended.pid is None else Job(ended.pid, ended.began)
        send(self._settings, Alert(event, f"the night: {ended.outcome}", ended.code, job=job))

    def refresh_ended(self, ended: Ended) -> None:
        """Tell of refreshes that fail again and again, once, and of the first that is done after that.

        One that found the lock held says nothing about either.
        """
        if ended.code == errors.EXIT_LOCKED:
            return
        failed, before = ended.code != errors.EXIT_DONE, self._failed_refreshes
        self._failed_refreshes = before + 1 if failed else 0
        if self._failed_refreshes == REFRESHES_IN_A_ROW:
            reason = f"{REFRESHES_IN_A_ROW} refreshes in a row; the last: {ended.outcome}"
            send(self._settings, Alert(Event.REFRESH_FAILED, reason, ended.code))
        elif not failed and before >= REFRESHES_IN_A_ROW:
            reason = f"one is done after {before} that failed"
            send(self._settings, Alert(Event.REFRESH_RECOVERED, reason, ended.code))

    def late(self, reason: str) -> None:
        """Tell that a night is late."""
        send(self._settings, Alert(Event.RUN_LATE, reason))

    def mended(self, reason: str) -> None:
        """Tell that a run has gone live after a night that was late."""
        send(self._settings, Alert(Event.RUN_RECOVERED, reason))
