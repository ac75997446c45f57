"""Jobs: commands of the batch that the console runs as child processes, with their log and output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from batch.context import Stores
from contract.settings import Settings

NIGHT, REFRESH, DOCTOR, REPORT, EXPLAIN, WEBHOOK = (
    "night",
    "refresh",
    "doctor",
    "report",
    "explain",
    "webhook",
)
"""Kinds of jobs."""


@dataclass(frozen=True)
class JobKind:
    """A kind of job.

    Attributes
    ----------
    command
        Arguments of `python -m batch`; `{name}` stands for an argument of the job.
    reads_only
        Whether it changes nothing: then viewers and a read-only console may run it, and its result is kept in
        memory, not in Postgres.
    prints_json
        Whether its output is a JSON document, which the job keeps.
    """

    title: str
    command: tuple[str, ...]
    reads_only: bool = False
    prints_json: bool = False


KINDS: Mapping[str, JobKind] = {
    NIGHT: JobKind("night", ("run", "--variant", "all")),
    REFRESH: JobKind("refresh", ("refresh",)),
    DOCTOR: JobKind("doctor", ("doctor", "--json"), prints_json=True),
    WEBHOOK: JobKind("try the webhook", ("alert", "--test")),
    REPORT: JobKind(
        "experiment report", ("experiment", "report", "--json"), reads_only=True, prints_json=True
    ),
    EXPLAIN: JobKind(
        "explain",
        ("explain", "--json", "--run", "{run}", "--", "{user}", "{posts}"),
        reads_only=True,
        prints_json=True,
    ),
}


@dataclass(frozen=True)
class JobRecord:
    """A job as pages see it.

    Attributes
    ----------
    arguments
        Of its kind, such as `user` and `run`; a list gives several arguments of the command.
    actor
        The name that signed in.
    exit_code, meaning
        None while it runs; the meaning is the exit code in words.
    log
        The last lines of what it logged.
    output
        What it printed, if its kind prints JSON and it ended well.
    """

    job_id: str
    kind: str
    command: str
    actor: str
    started_at: datetime
    reason: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    ended_at: datetime | None = None
    exit_code: int | None = None
    meaning: str | None = None
    log: str = ""
    output: Any = None

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.ended_at is None


class Jobs:
    """Starts jobs and remembers them; one per process."""

    def __init__(self, settings: Settings, stores: Stores) -> None:
        self._settings = settings
        self._stores = stores

    def start(
        self, kind: str, arguments: Mapping[str, Any], actor: str, reason: str | None = None
    ) -> JobRecord:
        """Start a job; if one of the kind with these arguments runs already, return that one."""
        raise NotImplementedError

    def find(self, job_id: str) -> JobRecord | None:
        """Return a job of this process, or a recorded one; None if there is none."""
        raise NotImplementedError

    def latest(self, kind: str, arguments: Mapping[str, Any]) -> JobRecord | None:
        """Return the newest job of a kind with these arguments, running or ended; None if there is none."""
        raise NotImplementedError

    def stop(self, job_id: str) -> bool:
        """End a running job as the scheduler ends one; return whether it ran."""
        raise NotImplementedError
