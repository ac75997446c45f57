"""What a check found, and how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import redis
import sqlalchemy as sa


class Status(StrEnum):
    """How bad it is: `warn` for what works today and may not tomorrow."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line of a doctor's report. `mend` says what to do; None where all is well."""

    check: str
    status: Status
    found: str
    mend: str | None = None


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, Status.OK, found)


def warn(check: str, found: str, mend: str) -> Finding:
    """Something to see to."""
    return Finding(check, Status.WARN, found, mend)


def fail(check: str, found: str, mend: str) -> Finding:
    """Something is broken, or will be by the next night."""
    return Finding(check, Status.FAIL, found, mend)


def worst(findings: Iterable[Finding]) -> Status:
    """Return the worst status of all."""
    return max((finding.status for finding in findings), key=list(Status).index, default=Status.OK)


NOTICEABLE, HARMFUL = timedelta(seconds=2), timedelta(seconds=60)

NOW = sa.text("SELECT clock_timestamp()")


def postgres_clock(connection: sa.Connection) -> Finding:
    """Compare the clock of Postgres with ours."""

    def ask() -> datetime:
        found: datetime = connection.scalar(NOW) or datetime.now(UTC)
        return found

    return judged("clock of postgres", skew(ask))


def redis_clock(client: redis.Redis) -> Finding:
    """Compare the clock of Redis with ours."""

    def ask() -> datetime:
        answer = client.time()
        seconds, microseconds = answer if isinstance(answer, tuple) else next(iter(answer.values()))
        return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)

    return judged("clock of redis", skew(ask))


def skew(ask: Callable[[], datetime]) -> timedelta:
    """Return how far another clock is ahead of ours (negative: behind), less what the asking may explain."""
    before = datetime.now(UTC)
    theirs = ask()
    after = datetime.now(UTC)
    if before <= theirs <= after:
        return timedelta()
    return theirs - after if theirs > after else theirs - before


def judged(check: str, ahead: timedelta) -> Finding:
    """Judge a skew: times in the ledger, ages of runs and what counts as the future depend on it."""
    told = (
        f"{abs(ahead).total_seconds():.1f} s {'ahead of' if ahead > timedelta() else 'behind'} this machine"
    )
    if abs(ahead) <= NOTICEABLE:
        return ok(check, "agrees with this machine's within 2 s")
    mend = "set the clocks by NTP (timedatectl set-ntp true)"
    return fail(check, told, mend) if abs(ahead) > HARMFUL else warn(check, told, mend)
