"""The result of a check with its fix, and the checks of the clocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import redis
import sqlalchemy as sa


class Status(StrEnum):
    """How severe it is: `warn` for what works today and may not tomorrow."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """The result of one check. `fix` says what to do; None if all is well."""

    check: str
    status: Status
    found: str
    fix: str | None = None

    def as_dict(self) -> dict[str, str | None]:
        """Return the fields of `doctor --json`."""
        return {"check": self.check, "status": self.status, "found": self.found, "mend": self.fix}


def ok(check: str, found: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(check, Status.OK, found)


def warn(check: str, found: str, fix: str) -> Finding:
    """Return a finding of a possible problem."""
    return Finding(check, Status.WARN, found, fix)


def fail(check: str, found: str, fix: str) -> Finding:
    """Return a finding that something is broken, or will be by the next night."""
    return Finding(check, Status.FAIL, found, fix)


def fail_from_error(check: str, error: Exception) -> Finding:
    """Return a failure from an error whose message ends in `; FIX`."""
    found, _, fix = str(error).rpartition("; ")
    return fail(check, found, fix)


def worst_status(findings: Iterable[Finding]) -> Status:
    """Return the most severe status; OK if there are no findings."""
    return max((finding.status for finding in findings), key=list(Status).index, default=Status.OK)


WARN_SKEW, FAIL_SKEW = timedelta(seconds=2), timedelta(seconds=60)

NOW = sa.text("SELECT clock_timestamp()")


def check_postgres_clock(connection: sa.Connection) -> Finding:
    """Compare the clock of Postgres with this machine's."""

    def read() -> datetime:
        now: datetime = connection.scalar(NOW) or datetime.now(UTC)
        return now

    return check_skew("clock of postgres", measure_skew(read))


def check_redis_clock(client: redis.Redis) -> Finding:
    """Compare the clock of Redis with this machine's."""

    def read() -> datetime:
        answer = client.time()
        seconds, microseconds = answer if isinstance(answer, tuple) else next(iter(answer.values()))
        return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)

    return check_skew("clock of redis", measure_skew(read))


def measure_skew(read: Callable[[], datetime]) -> timedelta:
    """Return how far another clock is ahead of ours (negative: behind), beyond the time of the round trip."""
    before = datetime.now(UTC)
    theirs = read()
    after = datetime.now(UTC)
    if before <= theirs <= after:
        return timedelta()
    return theirs - after if theirs > after else theirs - before


def check_skew(check: str, skew: timedelta) -> Finding:
    """Check a clock skew: the times in the ledger, the age of runs and what is in the future depend on it."""
    if abs(skew) <= WARN_SKEW:
        return ok(check, "agrees with this machine's within 2 s")
    direction = "ahead of" if skew > timedelta() else "behind"
    found = f"{abs(skew).total_seconds():.1f} s {direction} this machine"
    fix = "set the clocks by NTP (timedatectl set-ntp true)"
    return fail(check, found, fix) if abs(skew) > FAIL_SKEW else warn(check, found, fix)
