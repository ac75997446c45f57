"""Inject one fault, check answers while it lasts, and measure recovery time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus

from benchmarks.faults.checking_client import Exchange
from benchmarks.faults.environment import Environment, wait_until


class ExpectedBehaviour(Enum):
    """What first pages of users with lists must be while a fault lasts."""

    EITHER = "personal, or popular and stale"
    GONE = "popular and stale"
    EMPTY = "popular, and stale as soon as a refresh has seen it"


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes
    ----------
    inject
        Context manager that injects the fault when entered and reverts it when left.
    expected
        What answers must be while the fault lasts.
    lasting
        Whether recovery time counts from the revert; else from the injection.
    afterwards
        The runs that must be served in the end.
    pruned
        The runs whose cursors may be answered with 410, which is by design.
    """

    name: str
    inject: Callable[[Environment], AbstractContextManager[None]]
    expected: ExpectedBehaviour
    lasting: bool = True
    afterwards: tuple[int, int] = (0, 1)
    pruned: tuple[int, ...] = ()


@dataclass(frozen=True)
class FaultResult:
    """What happened under a fault.

    Attributes
    ----------
    exchanges
        Requests sent from the injection until all answers were back to normal for a while.
    injected_at
        When the fault had been injected.
    recovery_seconds
        From the revert (or the injection) to the last answer that was not normal.
    false_statements
        False statements of answers about themselves, one line each.
    """

    fault: Fault
    exchanges: list[Exchange]
    injected_at: float
    recovery_seconds: float
    false_statements: list[str]


def run_fault(
    environment: Environment, fault: Fault, fault_seconds: float, normal_seconds: float
) -> FaultResult:
    """Keep a fault up for `fault_seconds`; revert it; wait for `normal_seconds` of normal answers."""
    started = time.monotonic()
    with fault.inject(environment):
        injected_at = time.monotonic()
        wait_until(lambda: time.monotonic() > injected_at + fault_seconds, "time passes")
        if fault.expected is ExpectedBehaviour.EMPTY:
            wait_until(
                lambda: _all_lately(environment, injected_at, normal_seconds, _is_stale),
                "all answers say that they are stale",
            )
        reverted_at = time.monotonic()
    recovery_start = time.monotonic() if fault.lasting else started

    def is_normal(exchange: Exchange) -> bool:
        return _is_normal(exchange, fault.afterwards)

    wait_until(
        lambda: _all_lately(environment, recovery_start, normal_seconds, is_normal),
        f"all answers are normal after: {fault.name}",
    )
    after_recovery_start = environment.load.since(recovery_start)
    abnormal = [each.answered_at for each in after_recovery_start if not is_normal(each)]
    exchanges = environment.load.since(started)
    return FaultResult(
        fault,
        exchanges,
        injected_at,
        max([0.0, *(moment - recovery_start for moment in abnormal)]),
        _list_false_statements(fault, exchanges, injected_at, reverted_at),
    )


def _all_lately(
    environment: Environment, start: float, seconds: float, is_right: Callable[[Exchange], bool]
) -> bool:
    """Return whether all answers of the last seconds were right, with a user with a list among them."""
    now = time.monotonic()
    lately = environment.load.since(now - seconds)
    return now > start + seconds and any(each.is_first_page for each in lately) and all(map(is_right, lately))


def _is_stale(exchange: Exchange) -> bool:
    return exchange.stale is not False


def _is_normal(exchange: Exchange, runs: Sequence[int]) -> bool:
    if exchange.status not in (200, 410) or exchange.stale:
        return False
    return not exchange.is_first_page or (exchange.source == "personal" and exchange.run in runs)


def _list_false_statements(
    fault: Fault, exchanges: Sequence[Exchange], injected_at: float, reverted_at: float
) -> list[str]:
    found = []
    for each in exchanges:
        when = f"{each.sent_at - injected_at:.2f} s after the injection"
        if each.status == HTTPStatus.GONE and each.cursor_run not in fault.pruned:
            found.append(f"410 for run {each.cursor_run}, which exists, {when}")
        if not each.is_first_page:
            continue
        during = each.sent_at >= injected_at and each.answered_at <= reverted_at
        may_be_fresh = fault.expected is ExpectedBehaviour.EMPTY
        if not may_be_fresh and each.source == "popular" and each.stale is False:
            found.append(f"popular and not stale, {when}")
        may_be_personal = fault.expected is ExpectedBehaviour.EITHER
        if not may_be_personal and each.source == "personal" and during:
            found.append(f"personal, though Redis was down, {when}")
    return found
