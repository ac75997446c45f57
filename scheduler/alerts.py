"""Alerts that the scheduler sends: a late night, and a child process that could not send its own."""

from __future__ import annotations

from batch.alerts.alert import Alert, Event, Process, send
from contract import errors
from contract.settings import Settings
from scheduler.job import JobResult

ALERTED_BY_BATCH = (errors.EXIT_DONE, errors.EXIT_FAILED, errors.EXIT_USAGE, errors.EXIT_REFUSED)
"""Exit codes after which the scheduler sends nothing: `batch run` sends its own alerts."""

MIN_FAILED_REFRESHES = 3
"""Failed refreshes in a row before an alert: after a single failure the next refresh catches up."""


class SchedulerAlerts:
    """Sends alerts to the webhook of the settings, if one is set."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._failed_refreshes = 0

    def on_night_end(self, result: JobResult) -> None:
        """Report a night that was killed, could not be started, or found the lock held."""
        if result.exit_code in ALERTED_BY_BATCH:
            return
        event = Event.RUN_LOCKED if result.exit_code == errors.EXIT_LOCKED else Event.RUN_FAILED
        process = None if result.pid is None else Process(result.pid, result.started_at)
        reason = f"the night: {result.meaning}"
        send(self._settings, Alert(event, reason, result.exit_code, process=process))

    def on_refresh_end(self, result: JobResult) -> None:
        """Report the third failed refresh in a row, and the first success after that, once each.

        A refresh that found the lock held counts as neither.
        """
        if result.exit_code == errors.EXIT_LOCKED:
            return
        failed, failed_before = result.exit_code != errors.EXIT_DONE, self._failed_refreshes
        self._failed_refreshes = failed_before + 1 if failed else 0
        if self._failed_refreshes == MIN_FAILED_REFRESHES:
            reason = f"{MIN_FAILED_REFRESHES} refreshes in a row failed; the last: {result.meaning}"
            send(self._settings, Alert(Event.REFRESH_FAILED, reason, result.exit_code))
        elif not failed and failed_before >= MIN_FAILED_REFRESHES:
            reason = f"a refresh succeeded after {failed_before} that failed"
            send(self._settings, Alert(Event.REFRESH_RECOVERED, reason, result.exit_code))

    def on_late(self, reason: str) -> None:
        """Report that a night is late."""
        send(self._settings, Alert(Event.RUN_LATE, reason))

    def on_recovered(self, reason: str) -> None:
        """Report that a run has gone live after a late night."""
        send(self._settings, Alert(Event.RUN_RECOVERED, reason))
