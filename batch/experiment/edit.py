"""The edits of a split that operators make; no I/O."""

from __future__ import annotations

from dataclasses import replace

from contract.errors import EXIT_USAGE, OvernightError
from contract.experiment import Experiment

MOST_PINS = 1_000
"""Serving reads them every second, and they are for testing."""


class PinError(OvernightError):
    """Raised when a user cannot be pinned."""

    exit_code = EXIT_USAGE


def edited(now: Experiment, name: str | None, salt: str | None, percent_test: int | None) -> Experiment:
    """Return the split with what is given in place of what was; pins stay."""
    return replace(
        now,
        name=now.name if name is None else name,
        salt=now.salt if salt is None else salt,
        percent_test=now.percent_test if percent_test is None else percent_test,
    )


def pinned(now: Experiment, user_id: int, variant: str) -> Experiment:
    """Return the split with a user pinned to a variant.

    Raises
    ------
    PinError
        So many are pinned already that this is no testing.
    """
    pins = {**now.pins, user_id: variant}
    if len(pins) > MOST_PINS:
        raise PinError(f"{MOST_PINS} users are pinned, which is the most; `experiment unpin USER` makes room")
    return replace(now, pins=pins)


def unpinned(now: Experiment, user_id: int) -> Experiment:
    """Return the split without a user's pin, if there is one."""
    return replace(now, pins={user: variant for user, variant in now.pins.items() if user != user_id})
