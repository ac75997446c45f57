"""Encoding of exposures between serving and batch: one batch is one entry of a Redis stream."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from contract.codec import decode_object, encode_object
from contract.columns import MAX_ID

FIELD = "served"
"""The only field of an entry."""

MAX_LATENCY_MS = 10**9
END_OF_YEAR_9999 = 253_402_300_800
"""Seconds since 1970; datetime cannot represent later times."""


class Exposure(NamedTuple):
    """One answered first page of a feed.

    Attributes
    ----------
    variant
        The variant whose list was served.
    source
        See `contract.score_kind`.
    served_at
        Seconds since 1970, UTC.
    took_ms
        How long the answer took; None if an earlier release recorded the exposure.
    """

    user_id: int
    variant: str
    run_id: str
    source: str
    served_at: float
    took_ms: float | None = None


def encode_exposures(exposures: Sequence[Exposure]) -> str:
    """Encode as `{"at": seconds, "lists": [[variant, run_id, source, [[user_id, ms, took], ...]], ...]}`.

    `ms` is the time after `at` in milliseconds. `took` is the latency in
    milliseconds, rounded to a tenth; it is left out if it is None. Values that
    many exposures share are written once, so an exposure takes about 17 bytes.
    """
    at = round(exposures[0].served_at, 3)
    lists: dict[tuple[str, str, str], list[list[float]]] = {}
    for user_id, variant, run_id, source, served_at, took_ms in exposures:
        took = [] if took_ms is None else [round(took_ms, 1)]
        row = [user_id, round((served_at - at) * 1000), *took]
        lists.setdefault((variant, run_id, source), []).append(row)
    return encode_object({"at": at, "lists": [[*shared, users] for shared, users in lists.items()]})


def decode_exposures(value: str | bytes) -> list[Exposure]:
    """Decode what `encode_exposures` wrote, list by list.

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
                _check_user(user_id),
                _check_text(variant),
                _check_text(run_id),
                _check_text(source),
                _add_milliseconds(at, ms),
                _check_latency(*took),
            )
            for variant, run_id, source, users in fields["lists"]
            for user_id, ms, *took in users
        ]
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"not a batch of exposures: {error}") from None


def _check_user(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_ID:
        raise ValueError(f"{json.dumps(value)[:40]} is not a user id")
    return value


def _add_milliseconds(at: float, ms: Any) -> float:
    seconds = at + int(ms) / 1000
    if not 0 <= seconds < END_OF_YEAR_9999:
        raise ValueError(f"{seconds} is not a time between 1970 and 9999")
    return seconds


def _check_latency(ms: Any = None) -> float | None:
    if ms is None:
        return None
    if isinstance(ms, bool) or not isinstance(ms, int | float) or not 0 <= ms < MAX_LATENCY_MS:
        raise ValueError(f"{json.dumps(ms)[:40]} is not a duration in milliseconds")
    return float(ms)


def _check_text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{json.dumps(value)[:40]} is not printable text")
    return value
