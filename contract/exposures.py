"""Exposures on their way from serving to the batch: a batch of them is one entry of a Redis stream."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from contract.codec import decode_object, encode_object

FIELD = "served"
"""The one field of an entry."""

MOST_ID = 2**63 - 1
MOST_MS = 10**9
MOST_SECONDS = 253_402_300_800
"""The year 10,000, which Python has no time for."""


class Exposure(NamedTuple):
    """A first page of a feed that was answered.

    `variant` is the one whose list was served; `served_at` is in seconds since 1970, in UTC.
    `took_ms` is how long the answer took, None where that was not noted yet.
    """

    user_id: int
    variant: str
    run_id: str
    source: str
    served_at: float
    took_ms: float | None = None


def encode(exposures: Sequence[Exposure]) -> str:
    """Encode as `{"at": seconds, "lists": [[variant, run_id, source, [[user_id, ms, took], ...]], ...]}`.

    `ms` is the time after `at` in milliseconds; `took` is so as well, to a
    tenth, and left out where it is not known.
    What many exposures share is written once, so that one takes about 17 bytes.
    """
    at = round(exposures[0].served_at, 3)
    lists: dict[tuple[str, str, str], list[list[float]]] = {}
    for user_id, variant, run_id, source, served_at, took_ms in exposures:
        took = [] if took_ms is None else [round(took_ms, 1)]
        row = [user_id, round((served_at - at) * 1000), *took]
        lists.setdefault((variant, run_id, source), []).append(row)
    return encode_object({"at": at, "lists": [[*shared, users] for shared, users in lists.items()]})


def decode(value: str | bytes) -> list[Exposure]:
    """Decode what `encode` wrote, list by list.

    Raises
    ------
    ValueError
        If the value is anything else.
    """
    fields = decode_object(value)
    try:
        at = float(fields["at"])
        return [
            Exposure(
                _user(user_id), _text(variant), _text(run_id), _text(source), _moment(at, ms), _took(*took)
            )
            for variant, run_id, source, users in fields["lists"]
            for user_id, ms, *took in users
        ]
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"not a batch of exposures: {error}") from None


def _user(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_ID:
        raise ValueError(f"{json.dumps(value)[:40]} is no user's id")
    return value


def _moment(at: float, ms: Any) -> float:
    seconds = at + int(ms) / 1000
    if not 0 <= seconds < MOST_SECONDS:
        raise ValueError(f"{seconds} is no time")
    return seconds


def _took(ms: Any = None) -> float | None:
    if ms is None:
        return None
    if isinstance(ms, bool) or not isinstance(ms, int | float) or not 0 <= ms < MOST_MS:
        raise ValueError(f"{json.dumps(ms)[:40]} is no duration in milliseconds")
    return float(ms)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{json.dumps(value)[:40]} is no word")
    return value
