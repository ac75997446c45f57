"""How values look in Redis: encode and decode, side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

SCORE_DECIMALS = 3

Ranked = list[tuple[int, float]]
"""Posts with their scores, best first."""


def encode_list(posts: Iterable[tuple[int, float]]) -> str:
    """Encode a ranked list as `[[post_id, score], ...]`; scores keep three decimals.

    Raises
    ------
    ValueError
        If a score is NaN or infinite: JSON has no word for it.
    """
    rows = [[int(post), _short(float(score))] for post, score in posts]
    return json.dumps(rows, separators=(",", ":"), allow_nan=False)


def decode_list(value: str | bytes, most: int | None = None) -> Ranked:
    """Decode what `encode_list` wrote; with `most`, its first posts only, without a look at the rest.

    Raises
    ------
    ValueError
        If the value is not a JSON list of [integer, finite number] pairs.
    """
    rows = _parse(value if most is None else _head(value, most))
    if not isinstance(rows, list):
        raise ValueError(f"expected a JSON list, found {type(rows).__name__}")
    try:
        return [(_integer(post), _finite(score)) for post, score in rows]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"not a list of [post_id, score] pairs: {error}") from None


def encode_object(fields: dict[str, Any]) -> str:
    """Encode a manifest, an experiment or a post; keys stay in the order given."""
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def decode_object(value: str | bytes) -> dict[str, Any]:
    """Decode what `encode_object` wrote.

    Raises
    ------
    ValueError
        If the value is not a JSON object.
    """
    fields = _parse(value)
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, found {type(fields).__name__}")
    return fields


def _head(value: str | bytes, rows: int) -> str | bytes:
    """Cut a list off after so many rows; one that has no more stays as it is."""
    text = value.decode() if isinstance(value, bytes) else value
    end = 0
    for _ in range(rows):
        end = text.find("],", end) + 1
        if not end:
            return value
    return text[:end] + "]"


def _short(score: float) -> float:
    """Round; a whole number loses its `.0` (NaN and infinities pass on to the encoder)."""
    rounded = round(score, SCORE_DECIMALS)
    return int(rounded) if rounded.is_integer() else rounded


def _parse(value: str | bytes) -> Any:
    try:
        return json.loads(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"score {value!r} is not finite")
    return number


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"post id {value!r} is not an integer")
    return value
