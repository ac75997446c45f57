"""One night, or refresh, run as a child process: its memory is given back, its crash stays its own."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from contract import errors

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "batch", "run", "--variant", "all")
REFRESH_COMMAND = (sys.executable, "-m", "batch", "refresh", "--quiet")

MEANINGS = {
    errors.EXIT_DONE: "done",
    errors.EXIT_FAILED: "failed",
    errors.EXIT_USAGE: "bad usage or settings",
    errors.EXIT_REFUSED: "refused by the gate",
    errors.EXIT_LOCKED: "another run holds the lock",
}


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes
    ----------
    code
        Its exit code, negative if a signal ended it; None if it could not be started.
    outcome
        What that means, in words.
    pid
        Its process id; None if it could not be started.
    began
        When it was started (aware).
    """

    code: int | None
    outcome: str
    pid: int | None
    began: datetime


def tell_nobody(ended: Ended) -> None:
    """Take no note of how a child ended."""


class Night:
    """Runs the command, one child at a time, and can stop it from another thread.

    `stopping` says that `stop` was called and no further night will start.

    Parameters
    ----------
    tell
        Is told of every child that ended by itself or could not be started.
    called
        What the log calls it.
    usual
        Level at which the log tells that it began, and that it ended well.
    """

    def __init__(
        self,
        command: Sequence[str] = COMMAND,
        tell: Callable[[Ended], None] = tell_nobody,
        called: str = "night",
        usual: int = logging.INFO,
    ) -> None:
        self._command = list(command)
        self._tell = tell
        self._called = called
        self._usual = usual
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self.stopping = False

    def run(self) -> int | None:
        """Run the night to its end, log how it ended, and return its exit code.

        A night that fails is logged, never raised: the next one is due all the
        same. None if it could not be started or `stop` came first.
        """
        began = datetime.now(UTC)
        try:
            child = self._start()
        except OSError as error:
            log.error("the %s could not be started: %s", self._called, error)
            self._tell(Ended(None, f"could not be started: {error}", None, began))
            return None
        if child is None:
            return None
        code = child.wait()
        level, outcome = _outcome(code)
        if self.stopping:
            level = logging.INFO
        level = self._usual if code == errors.EXIT_DONE else level
        log.log(level, "the %s ended: exit code %d, %s", self._called, code, outcome)
        if not self.stopping:
            self._tell(Ended(code, outcome, child.pid, began))
        return code

    def stop(self, timeout_seconds: float) -> None:
        """Let no further night start, and end the running one: SIGTERM first, SIGKILL when time is up."""
        with self._lock:
            self.stopping = True
            child = self._child
        if child is None or child.poll() is not None:
            return
        log.info("stopping the %s (process %d)", self._called, child.pid)
        child.terminate()
        try:
            child.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            log.error("the %s did not stop within %g seconds; killing it", self._called, timeout_seconds)
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    def _start(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self.stopping:
                return None
            # Its own process group: Ctrl-C in a terminal reaches the scheduler alone, which passes it on.
            self._child = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, process_group=0)
            command = shlex.join(self._command)
            log.log(self._usual, "the %s began (process %d): %s", self._called, self._child.pid, command)
            return self._child


def quiet_refresh(tell: Callable[[Ended], None] = tell_nobody) -> Night:
    """Return a refresh to run again and again: the log tells what it did, not that it looked."""
    return Night(REFRESH_COMMAND, tell, "refresh", logging.DEBUG)


def _outcome(code: int) -> tuple[int, str]:
    """Return the log level and the meaning of an exit code; negative is a signal's number."""
    if code < 0:
        hint = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
        return logging.ERROR, f"killed by {signal.Signals(-code).name}{hint}"
    level = {errors.EXIT_DONE: logging.INFO, errors.EXIT_LOCKED: logging.WARNING}.get(code, logging.ERROR)
    return level, MEANINGS.get(code, "unknown")
