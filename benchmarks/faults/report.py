"""What was seen under a fault, as a row of the table."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from benchmarks.faults.checking_client import Seen
from benchmarks.faults.run_fault import Befallen
from benchmarks.report import Columns

COLUMNS: Columns = {
    "fault": ("fault", ">28"),
    "requests": ("requests", "8"),
    "not_200": ("not 200", "7"),
    "gone_410": ("410", "4"),
    "retried": ("retried", "7"),
    "wrong": ("wrong", "5"),
    "p99_ms": ("worst p99 ms", "12.1f"),
    "max_ms": ("slowest ms", "10.1f"),
    "recovery_seconds": ("recovery s", "10.2f"),
}
"""`gone_410`: cursors of a pruned run, by design. `p99_ms`: in the worst second."""


def row_of(befallen: Befallen) -> dict[str, Any]:
    """Return the row."""
    seen = befallen.seen
    return {
        "fault": befallen.fault.name,
        "requests": len(seen),
        "not_200": sum(each.status not in (HTTPStatus.OK, HTTPStatus.GONE) for each in seen),
        "gone_410": sum(each.status == HTTPStatus.GONE for each in seen),
        "retried": sum(each.retries for each in seen),
        "wrong": len(wrongs(befallen)),
        "p99_ms": worst_p99_ms(seen, befallen.began),
        "max_ms": max(_ms(each) for each in seen),
        "recovery_seconds": befallen.recovery_seconds,
    }


def wrongs(befallen: Befallen) -> list[str]:
    """Return what was wrong with answers, or untrue in them, a line each."""
    return [each.wrong for each in befallen.seen if each.wrong] + befallen.untrue


def worst_p99_ms(seen: Sequence[Seen], began: float) -> float:
    """Return the highest of the seconds' 99th percentiles; a request belongs to the second it was due in."""
    seconds: dict[int, list[float]] = defaultdict(list)
    for each in seen:
        seconds[math.floor(each.due - began)].append(_ms(each))
    return max(_p99(times) for times in seconds.values())


def _p99(times: list[float]) -> float:
    return sorted(times)[math.ceil(0.99 * len(times)) - 1]


def _ms(seen: Seen) -> float:
    return (seen.answered - seen.due) * 1000
