"""The model's own account of a score: `python -m batch explain`, one child process at a time."""

from __future__ import annotations

import atexit
import json
import os
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import IO, Any

from contract.errors import EXIT_DONE, OvernightError
from contract.ids import Id
from contract.logs import redact
from contract.text import escape_controls
from scheduler.job import Job, JobResult, Surroundings, find_error

EXPLAIN_COMMAND = (sys.executable, "-m", "batch", "explain", "--json", "--")
MAX_SECONDS = 120
STOP_SECONDS = 5.0
KEPT_SECONDS = 600
"""How long an explanation is kept: the person's list may be another one after that."""
MAX_KEPT = 50
MAX_BYTES = 1024 * 1024

Subject = tuple[Id, Id]
"""A user, and a post."""


class BusyError(OvernightError):
    """Raised when an explanation runs already; nothing is started."""


@dataclass(frozen=True)
class Explanation:
    """An explanation that runs, or has ended.

    Attributes
    ----------
    ended_at
        None while it runs.
    answer
        Fields of `explain --json`; None while it runs, and if it failed.
    problem
        Why it failed.
    """

    started_at: datetime
    ended_at: datetime | None = None
    answer: Mapping[str, Any] | None = None
    problem: str = ""

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self.ended_at is None


@dataclass(frozen=True)
class _Process:
    """The child process, and the files that it writes to."""

    job: Job
    output: IO[bytes]
    log: IO[bytes]
    results: list[JobResult]


class Explanations:
    """Runs explanations and keeps them for a while; one per app. Its process ends with the app's.

    Parameters
    ----------
    secrets
        What no error may show.
    command
        What the ids of the user and the post are given to.
    """

    def __init__(self, secrets: list[str], command: Sequence[str] = EXPLAIN_COMMAND) -> None:
        self._secrets = secrets
        self._command = command
        self._lock = threading.Lock()
        self._kept: dict[Subject, Explanation] = {}  # in order of their start
        self._job: Job | None = None
        atexit.register(self.close)

    def start(self, user_id: Id, post_id: Id, *, again: bool = False) -> None:
        """Start an explanation, unless it runs or is kept; `again`: also if it is kept.

        Raises
        ------
        BusyError
            Another one runs.
        """
        subject = (user_id, post_id)
        with self._lock:
            self._forget_old()
            kept = self._kept.get(subject)
            if kept is not None and (kept.running or not (again or kept.problem)):
                return
            if self._job is not None:
                raise BusyError(
                    "the model explains another post now, and one at a time; try again in a few seconds"
                )
            results: list[JobResult] = []
            output, logged = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - see _run
            self._job = Job(
                [*self._command, str(user_id), str(post_id)],
                results.append,
                name="explanation",
                surroundings=Surroundings(output, logged),
            )
            self._kept.pop(subject, None)
            self._kept[subject] = Explanation(datetime.now(UTC))
            process = _Process(self._job, output, logged, results)
            threading.Thread(target=self._run, args=(subject, process), daemon=True).start()

    def find(self, user_id: Id, post_id: Id) -> Explanation | None:
        """Return an explanation that runs or is kept; None if there is none."""
        with self._lock:
            self._forget_old()
            return self._kept.get((user_id, post_id))

    def close(self) -> None:
        """End the process, if one runs."""
        with self._lock:
            job = self._job
        if job is not None:
            job.stop(STOP_SECONDS)

    def _run(self, subject: Subject, process: _Process) -> None:
        limit = threading.Timer(MAX_SECONDS, process.job.stop, (STOP_SECONDS,))
        limit.start()
        with process.output, process.log:
            code = process.job.run()
            limit.cancel()
            answer = _parse(_read(process.output)) if code == EXIT_DONE else None
            problem = "" if answer is not None else self._describe(process)
        with self._lock:
            kept = self._kept[subject]
            self._kept[subject] = replace(kept, ended_at=datetime.now(UTC), answer=answer, problem=problem)
            self._job = None

    def _describe(self, process: _Process) -> str:
        """Return why there is no explanation: the command's own error, or how it ended."""
        if process.job.stopping:
            return f"it was stopped, because it took over {MAX_SECONDS} s or the network's app ended"
        if error := find_error(_read(process.log).decode(errors="replace")):
            return escape_controls(redact(error, self._secrets))
        return process.results[0].meaning if process.results else "it printed no explanation"

    def _forget_old(self) -> None:
        """Forget what is old, or too much; call it with the lock held."""
        oldest = datetime.now(UTC) - timedelta(seconds=KEPT_SECONDS)
        ended = [(subject, kept.ended_at) for subject, kept in self._kept.items() if kept.ended_at]
        too_many = len(ended) - MAX_KEPT
        for index, (subject, ended_at) in enumerate(ended):
            if index < too_many or ended_at < oldest:
                del self._kept[subject]


def _read(file: IO[bytes]) -> bytes:
    return os.pread(file.fileno(), MAX_BYTES, 0)


def _parse(printed: bytes) -> Mapping[str, Any] | None:
    try:
        found = json.loads(printed)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
