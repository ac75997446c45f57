"""Encoding of exposures between serving and batch: one batch is one entry of a Redis stream."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from contract.codec import check_probability, decode_object, encode_object
from contract.columns import MAX_ID
from contract.ids import Id, IdKind, check_id

FIELD = "served"
"""The only field of an entry."""

MAX_LATENCY_MS = 10**9
END_OF_YEAR_9999 = 253_402_300_800
"""Seconds since 1970; datetime cannot represent later times."""


class ExploredPost(NamedTuple):
    """A post in an explored place: its position in the stored list, from 1, and the chance it was drawn."""

    post_id: Id
    rank: int
    probability: float


class Exposure(NamedTuple):
    """One answered first page of a feed, or a later page with posts in explored places.

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
    explored
        The posts of the page that stood in explored places.
    first_page
        Only first pages count as exposures; of a later page, only the posts in explored places are kept.
    """

    user_id: Id
    variant: str
    run_id: str
    source: str
    served_at: float
    took_ms: float | None = None
    explored: tuple[ExploredPost, ...] = ()
    first_page: bool = True


def encode_exposures(exposures: Sequence[Exposure]) -> str:
    """Encode as `{"at": seconds, "lists": [[variant, run_id, source, [[user_id, ms, took], ...]], ...]}`.

    A page with explored places adds `[[post_id, rank, probability], ...]` to its user; `took` is then null
    if it is None. A later page adds `false` after them.

    `ms` is the time after `at` in milliseconds. `took` is the latency in
    milliseconds, rounded to a tenth; it is left out if it is None. Values that
    many exposures share are written once, so an exposure takes about 17 bytes.
    """
    at = round(exposures[0].served_at, 3)
    lists: dict[tuple[str, str, str], list[list[Any]]] = {}
    for user_id, variant, run_id, source, served_at, took_ms, explored, first_page in exposures:
        took = None if took_ms is None else round(took_ms, 1)
        row: list[Any] = [user_id, round((served_at - at) * 1000)]
        if explored:
            row += [took, [list(each) for each in explored], *([] if first_page else [False])]
        elif took is not None:
            row.append(took)
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
                _check_id(user_id),
                _check_text(variant),
                _check_text(run_id),
                _check_text(source),
                _add_milliseconds(at, ms),
                *_check_rest(*rest),
            )
            for variant, run_id, source, users in fields["lists"]
            for user_id, ms, *rest in users
        ]
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"not a batch of exposures: {error}") from None


def _check_id(value: Any) -> Id:
    return check_id(value, IdKind.NUMBER if type(value) is int else IdKind.TEXT)


def _check_rest(
    took: Any = None, explored: Any = (), first_page: Any = True
) -> tuple[float | None, tuple[ExploredPost, ...], bool]:
    if type(first_page) is not bool:
        raise ValueError(f"{json.dumps(first_page)[:40]} does not say whether it is a first page")
    return _check_latency(took), tuple(_check_explored(*each) for each in explored), first_page


def _check_explored(post_id: Any, rank: Any, probability: Any) -> ExploredPost:
    if type(rank) is not int or not 0 < rank <= MAX_ID:
        raise ValueError(f"{json.dumps(rank)[:40]} is not a rank")
    return ExploredPost(_check_id(post_id), rank, check_probability(probability))


def _add_milliseconds(at: float, ms: Any) -> float:
    seconds = at + int(ms) / 1000
    if not 0 <= seconds < END_OF_YEAR_9999:
        raise ValueError(f"{seconds} is not a time between 1970 and 9999")
    return seconds


def _check_latency(ms: Any) -> float | None:
    if ms is None:
        return None
    if isinstance(ms, bool) or not isinstance(ms, int | float) or not 0 <= ms < MAX_LATENCY_MS:
        raise ValueError(f"{json.dumps(ms)[:40]} is not a duration in milliseconds")
    return float(ms)


def _check_text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{json.dumps(value)[:40]} is not printable text")
    return value
