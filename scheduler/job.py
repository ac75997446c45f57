"""A command run as a child process: its memory is freed at its end, and its crash stops nothing else."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO

from contract import errors

log = logging.getLogger(__name__)

NIGHT_COMMAND = (sys.executable, "-m", "batch", "run", "--variant", "all")
REFRESH_COMMAND = (sys.executable, "-m", "batch", "refresh", "--quiet")

ERROR = "error: "
"""How the last line of a command begins that failed."""

MEANINGS = {
    errors.EXIT_DONE: "done",
    errors.EXIT_FAILED: "failed",
    errors.EXIT_USAGE: "bad usage or settings",
    errors.EXIT_REFUSED: "refused by the gate",
    errors.EXIT_LOCKED: "another run holds the lock",
}


@dataclass(frozen=True)
class JobResult:
    """How a child process ended.

    Attributes
    ----------
    exit_code
        Negative if a signal ended the process; None if it could not be started.
    meaning
        The exit code in words.
    pid
        Process id; None if it could not be started.
    started_at
        Start of the process (timezone-aware).
    """

    exit_code: int | None
    meaning: str
    pid: int | None
    started_at: datetime


@dataclass(frozen=True)
class Surroundings:
    """What a child process gets in place of this process's own.

    Attributes
    ----------
    output, log
        Open files for its stdout and stderr, such as one file for both.
    environment
        Its whole environment.
    """

    output: IO[bytes] | None = None
    log: IO[bytes] | None = None
    environment: Mapping[str, str] | None = None


def ignore(result: JobResult) -> None:
    """Do nothing with a result."""


class Job:
    """Runs a command, one child process at a time; another thread can stop it.

    `stopping` is true once `stop` was called: no further child will start.

    Parameters
    ----------
    on_end
        Called with the result of every child that ended by itself or could not be started.
    name
        Name of the job in the log.
    log_level
        Level of the log lines on a start and on exit code 0.
    surroundings
        Files and environment of the child.
    """

    def __init__(
        self,
        command: Sequence[str] = NIGHT_COMMAND,
        on_end: Callable[[JobResult], None] = ignore,
        *,
        name: str = "night",
        log_level: int = logging.INFO,
        surroundings: Surroundings = Surroundings(),
    ) -> None:
        self._command = list(command)
        self._on_end = on_end
        self._name = name
        self._log_level = log_level
        self._surroundings = surroundings
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self.stopping = False

    def run(self) -> int | None:
        """Run the command to its end, log the result, and return the exit code.

        A failure is logged and never raised, so that the next run still happens.
        Returns None if the command could not be started or `stop` was called before.
        """
        started_at = datetime.now(UTC)
        try:
            child = self._start()
        except (OSError, ValueError) as error:  # ValueError: an argument that no process can have
            log.error("the %s could not be started: %s", self._name, error)
            self._on_end(JobResult(None, f"could not be started: {error}", None, started_at))
            return None
        if child is None:
            return None
        code = child.wait()
        level, meaning = interpret_exit(code)
        if self.stopping:
            level = logging.INFO
        level = self._log_level if code == errors.EXIT_DONE else level
        log.log(level, "the %s ended: exit code %d, %s", self._name, code, meaning)
        if not self.stopping:
            self._on_end(JobResult(code, meaning, child.pid, started_at))
        return code

    def stop(self, timeout_seconds: float) -> None:
        """Start no further child, and end the running one: SIGTERM first, SIGKILL after the timeout."""
        with self._lock:
            self.stopping = True
            child = self._child
        if child is None or child.poll() is not None:
            return
        log.info("stopping the %s (process %d)", self._name, child.pid)
        child.terminate()
        try:
            child.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            log.error("the %s did not stop within %g seconds; killing it", self._name, timeout_seconds)
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    def _start(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self.stopping:
                return None
            # A process group of its own: Ctrl-C in a terminal reaches only this process, which then
            # stops the child.
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=self._surroundings.output,
                stderr=self._surroundings.log,
                env=self._surroundings.environment,
                process_group=0,
            )
            command = shlex.join(self._command)
            log.log(self._log_level, "the %s began (process %d): %s", self._name, self._child.pid, command)
            return self._child


def refresh_job(on_end: Callable[[JobResult], None] = ignore) -> Job:
    """Return the job that refreshes lists; the log at INFO shows only its failures and its own output."""
    return Job(REFRESH_COMMAND, on_end, name="refresh", log_level=logging.DEBUG)


def find_error(printed: str) -> str:
    """Return the error in which a command's output ends; empty if it ends in another line."""
    last = printed.strip().rpartition("\n")[2]
    return last.removeprefix(ERROR) if last.startswith(ERROR) else ""


def interpret_exit(exit_code: int) -> tuple[int, str]:
    """Return the log level and the meaning of an exit code; a negative one is the number of a signal."""
    if exit_code < 0:
        hint = ", perhaps because memory ran out" if exit_code == -signal.SIGKILL else ""
        return logging.ERROR, f"killed by {signal.Signals(-exit_code).name}{hint}"
    levels = {errors.EXIT_DONE: logging.INFO, errors.EXIT_LOCKED: logging.WARNING}
    return levels.get(exit_code, logging.ERROR), MEANINGS.get(exit_code, "unknown")
