"""How values look in Redis: encode and decode, side by side."""

from __future__ import annotations

import json
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
    rows = [[int(post), round(float(score), SCORE_DECIMALS)] for post, score in posts]
    return json.dumps(rows, separators=(",", ":"), allow_nan=False)


def decode_list(value: str | bytes) -> Ranked:
    """Decode what `encode_list` wrote.

    Raises
    ------
    ValueError
        If the value is not a JSON list of [integer, number] pairs.
    """
    rows = json.loads(value)
    try:
        return [(_integer(post), float(score)) for post, score in rows]
    except (TypeError, ValueError) as error:
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
    fields = json.loads(value)
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, found {type(fields).__name__}")
    return fields


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"post id {value!r} is not an integer")
    return value
