"""What a check found, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


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
