"""The result of a fault as a row of the table."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from benchmarks.faults.checking_client import Exchange
from benchmarks.faults.run_fault import FaultResult
from benchmarks.report import Columns

COLUMNS: Columns = {
    "over": ("over", ">6"),
    "fault": ("fault", ">28"),
    "requests": ("requests", "8"),
    "not_200": ("not 200", "7"),
    "gone_410": ("410", "4"),
    "retried": ("retried", "7"),
    "wrong": ("wrong", "5"),
    "personal_percent": ("personal %", "10.1f"),
    "p99_ms": ("worst p99 ms", "12.1f"),
    "max_ms": ("slowest ms", "10.1f"),
    "recovery_seconds": ("recovery s", "10.2f"),
}
"""`over`: how serving reaches Redis. `gone_410`: cursors of a pruned run, which is by design.
`personal_percent`: of the first pages of users with lists. `p99_ms`: in the worst second.
"""


def make_row(result: FaultResult, over: str = "") -> dict[str, Any]:
    """Return the row of a fault."""
    exchanges = result.exchanges
    first_pages = [each for each in exchanges if each.is_first_page]
    return {
        "over": over,
        "fault": result.fault.name,
        "requests": len(exchanges),
        "not_200": sum(each.status not in (HTTPStatus.OK, HTTPStatus.GONE) for each in exchanges),
        "gone_410": sum(each.status == HTTPStatus.GONE for each in exchanges),
        "retried": sum(each.retries for each in exchanges),
        "wrong": len(list_errors(result)),
        "personal_percent": 100 * sum(each.source == "personal" for each in first_pages) / len(first_pages),
        "p99_ms": worst_p99_ms(exchanges, result.injected_at),
        "max_ms": max(_latency_ms(each) for each in exchanges),
        "recovery_seconds": result.recovery_seconds,
    }


def list_errors(result: FaultResult) -> list[str]:
    """Return the errors in answers and the false statements in them, one line each."""
    return [each.error for each in result.exchanges if each.error] + result.false_statements


def worst_p99_ms(exchanges: Sequence[Exchange], start: float) -> float:
    """Return the highest 99th percentile of any second; a request belongs to the second it was due in."""
    latencies: dict[int, list[float]] = defaultdict(list)
    for each in exchanges:
        latencies[math.floor(each.due_at - start)].append(_latency_ms(each))
    return max(_p99(times) for times in latencies.values())


def _p99(times: list[float]) -> float:
    return sorted(times)[math.ceil(0.99 * len(times)) - 1]


def _latency_ms(exchange: Exchange) -> float:
    return (exchange.answered_at - exchange.due_at) * 1000
