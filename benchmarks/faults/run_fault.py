"""A fault befalls a stage: how long it lasts, what answers must say meanwhile, how soon all is well again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus

from benchmarks.faults.checking_client import Seen
from benchmarks.faults.environment import Stage, wait_until


class Meanwhile(Enum):
    """What first pages of users with lists must say while a fault lasts."""

    EITHER = "personal, or popular and stale"
    GONE = "popular and stale"
    EMPTY = "popular, and stale as soon as a refresh has seen it"


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes
    ----------
    strikes
        Befalls the stage when entered, and mends it when left.
    lasting
        Whether recovery counts from the mending; else from the blow itself.
    afterwards
        The runs that must be served in the end.
    pruned
        The runs whose cursors may be answered with 410, which is by design.
    """

    name: str
    strikes: Callable[[Stage], AbstractContextManager[None]]
    meanwhile: Meanwhile
    lasting: bool = True
    afterwards: tuple[int, int] = (0, 1)
    pruned: tuple[int, ...] = ()


@dataclass(frozen=True)
class Befallen:
    """What happened.

    Attributes
    ----------
    seen
        What was asked from the blow until all was well again and stayed so.
    began
        When the blow had fallen.
    recovery_seconds
        From the mending (or the blow) to the end of the last answer that was not as usual.
    untrue
        What answers said of themselves that was not so, a line each.
    """

    fault: Fault
    seen: list[Seen]
    began: float
    recovery_seconds: float
    untrue: list[str]


def befall(stage: Stage, fault: Fault, lasts_seconds: float, calm_seconds: float) -> Befallen:
    """Let a fault befall the stage for so long, and wait until all is well again for so long."""
    before = time.monotonic()
    with fault.strikes(stage):
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + lasts_seconds, "time passes")
        if fault.meanwhile is Meanwhile.EMPTY:
            wait_until(
                lambda: _calm(stage, began, calm_seconds, _is_stale), "all answers say that they are stale"
            )
        until = time.monotonic()
    start = time.monotonic() if fault.lasting else before

    def is_well(seen: Seen) -> bool:
        return _is_well(seen, fault.afterwards)

    wait_until(lambda: _calm(stage, start, calm_seconds, is_well), f"all is well after: {fault.name}")
    unwell = [seen.answered for seen in stage.load.since(start) if not is_well(seen)]
    seen = stage.load.since(before)
    return Befallen(fault, seen, began, max([0.0, *(moment - start for moment in unwell)]),
                    _untrue(fault, seen, began, until))  # fmt: skip


def _calm(stage: Stage, start: float, seconds: float, is_right: Callable[[Seen], bool]) -> bool:
    """Tell whether everything asked lately was right, users with lists among it."""
    now = time.monotonic()
    lately = stage.load.since(now - seconds)
    return (
        now > start + seconds
        and any(seen.first_page_of_known for seen in lately)
        and all(map(is_right, lately))
    )


def _is_stale(seen: Seen) -> bool:
    return seen.stale is not False


def _is_well(seen: Seen, runs: Sequence[int]) -> bool:
    if seen.status not in (200, 410) or seen.stale:
        return False
    return not seen.first_page_of_known or (seen.source == "personal" and seen.run in runs)


def _untrue(fault: Fault, seen: Sequence[Seen], began: float, until: float) -> list[str]:
    lies = []
    for each in seen:
        after = f"{each.asked - began:.2f} s after the blow"
        if each.status == HTTPStatus.GONE and each.cursor_of not in fault.pruned:
            lies.append(f"410 for run {each.cursor_of}, which is there, {after}")
        if not each.first_page_of_known:
            continue
        during = each.asked >= began and each.answered <= until
        if fault.meanwhile is not Meanwhile.EMPTY and each.source == "popular" and each.stale is False:
            lies.append(f"popular, and not stale, {after}")
        if fault.meanwhile is not Meanwhile.EITHER and each.source == "personal" and during:
            lies.append(f"personal, though Redis was gone, {after}")
    return lies
