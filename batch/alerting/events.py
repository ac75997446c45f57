"""What an alert can be about, what it says in plain words, and where the runbook says what to do."""

from __future__ import annotations

from enum import StrEnum

RUNBOOK = "docs/operations.md"


class Event(StrEnum):
    """What happened; the name stands in the alert as `event`."""

    RUN_FAILED = "run_failed"
    RUN_REFUSED = "run_refused"
    RUN_LOCKED = "run_locked"
    RUN_LATE = "run_late"
    RUN_RECOVERED = "run_recovered"
    REFRESH_FAILED = "refresh_failed"
    REFRESH_RECOVERED = "refresh_recovered"
    TEST = "test"


SENTENCES = {
    Event.RUN_FAILED: "a run failed",
    Event.RUN_REFUSED: "a run was refused before it went live",
    Event.RUN_LOCKED: "a night was left out because another run holds the lock",
    Event.RUN_LATE: "a night is late",
    Event.RUN_RECOVERED: "a run is live again after a night that was late",
    Event.REFRESH_FAILED: "the refresh keeps failing",
    Event.REFRESH_RECOVERED: "the refresh works again",
    Event.TEST: "this is a test alert",
}

SECTIONS = {
    Event.RUN_FAILED: "A run failed",
    Event.RUN_REFUSED: "A run was refused",
    Event.RUN_LOCKED: "The lock was held",
    Event.RUN_LATE: "A night is late",
    Event.RUN_RECOVERED: "A run is live again",
    Event.REFRESH_FAILED: "The refresh keeps failing",
    Event.REFRESH_RECOVERED: "The refresh works again",
    Event.TEST: "Try the webhook",
}
"""Event -> the heading in the runbook that tells what to type."""
