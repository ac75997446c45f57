"""Clocks: Postgres, Redis and this machine should agree on the time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import redis
import sqlalchemy as sa

from batch.doctoring.finding import Finding, fail, ok, warn

NOTICEABLE, HARMFUL = timedelta(seconds=2), timedelta(seconds=60)

NOW = sa.text("SELECT clock_timestamp()")


def of_postgres(connection: sa.Connection) -> Finding:
    """Compare the clock of Postgres with ours."""

    def ask() -> datetime:
        found: datetime = connection.scalar(NOW) or datetime.now(UTC)
        return found

    return judged("clock of postgres", skew(ask))


def of_redis(client: redis.Redis) -> Finding:
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
