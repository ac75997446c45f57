"""The button that makes lists anew: it starts `python -m batch refresh`, one at a time over all visitors."""

from __future__ import annotations

import sys
import tempfile
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO

from contract.errors import EXIT_DONE, EXIT_LOCKED
from contract.text import escape_controls
from scheduler.job import Job, JobResult, Surroundings, find_error

COMMAND = (sys.executable, "-m", "batch", "refresh")
STOP_SECONDS = 5
MAX_REASON = 300
MAX_LOG_BYTES = 64 * 1024


@dataclass(frozen=True)
class Outcome:
    """How a refresh ended.

    Attributes
    ----------
    pressed_by
        The visit in which the button was pressed.
    problem
        What was wrong, in words; empty if it was done.
    """

    pressed_by: str
    started_at: datetime
    ended_at: datetime
    problem: str


class RefreshButton:
    """Runs refreshes; one per process of the app."""

    def __init__(self, command: tuple[str, ...] = COMMAND) -> None:
        self._command = command
        self._lock = threading.Lock()
        self._job: Job | None = None
        self._pressed_by = ""
        self._closed = False
        self.outcome: Outcome | None = None

    @property
    def running(self) -> bool:
        """Whether a refresh that was started here runs."""
        return self._job is not None

    def press(self, visit: str) -> bool:
        """Start a refresh for a visit; return False if one that was started here runs already."""
        with self._lock:
            if self._job is not None or self._closed:
                return False
            log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _run
            job = Job(
                self._command, self._end, name="refresh", surroundings=Surroundings(output=log, log=log)
            )
            self._job, self._pressed_by = job, visit
        threading.Thread(target=self._run, args=(job, log), daemon=True).start()
        return True

    def close(self) -> None:
        """Stop the running refresh, and start no further one."""
        with self._lock:
            self._closed = True
            job = self._job
        if job is not None:
            job.stop(STOP_SECONDS)

    def _run(self, job: Job, log: IO[bytes]) -> None:
        with log:
            self._log = log
            job.run()
        self._job = None

    def _end(self, result: JobResult) -> None:
        problem = ""
        if result.exit_code == EXIT_LOCKED:
            problem = "Another refresh was at work. It is not disturbed; press again when it has ended."
        elif result.exit_code != EXIT_DONE:
            reason = _read_error(self._log) or result.meaning
            problem = f"The refresh failed: {reason}. Lists stay as they were."
        self.outcome = Outcome(self._pressed_by, result.started_at, datetime.now(UTC), problem)


def _read_error(log: IO[bytes]) -> str:
    """Return the error in which a refresh's log ends; empty if it ends otherwise."""
    log.seek(0)
    error = find_error(log.read(MAX_LOG_BYTES).decode(errors="replace"))
    return escape_controls(error)[:MAX_REASON].rstrip(".")
