"""Run ids: UTC time and variant, like `20261122T030000Z-control`."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from contract.experiment import VARIANTS

_TIME = "%Y%m%dT%H%M%SZ"
_SHAPE = re.compile(r"([0-9]{8}T[0-9]{6}Z)-(" + "|".join(VARIANTS) + ")")


def make_run_id(begun_at: datetime, variant: str) -> str:
    """Return the id of a run of `variant` that starts at `begun_at` (aware; cut to the second)."""
    return f"{begun_at.astimezone(UTC).strftime(_TIME)}-{variant}"


def is_run_id(text: str) -> bool:
    """Return whether `text` is a run id."""
    return _SHAPE.fullmatch(text) is not None


def parse_run_id(run_id: str) -> tuple[datetime, str]:
    """Return when a run started (aware, UTC) and its variant.

    Raises
    ------
    ValueError
        If `run_id` is not a run id.
    """
    match = _SHAPE.fullmatch(run_id)
    if match is None:
        raise ValueError(f"{run_id[:80]!r} is not a run id like 20261122T030000Z-control")
    begun_at = datetime.strptime(match[1], _TIME).replace(tzinfo=UTC)
    return begun_at, match[2]
