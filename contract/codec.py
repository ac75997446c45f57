"""Encode and decode the values in Redis."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import orjson

SCORE_DECIMALS = 3

LIST_HEAD = 5
"""Posts at the head of a list: what most users see."""

Ranked = list[tuple[int, float]]
"""Posts with their scores, best first."""


def encode_list(posts: Iterable[tuple[int, float]]) -> str:
    """Encode a ranked list as `[[post_id, score], ...]`; scores keep three decimals.

    Raises
    ------
    ValueError
        If a score is NaN or infinite.
    """
    rows = [[int(post), _round(float(score))] for post, score in posts]
    return json.dumps(rows, separators=(",", ":"), allow_nan=False)


def decode_list(value: str | bytes) -> Ranked:
    """Decode what `encode_list` wrote.

    Raises
    ------
    ValueError
        If the value is not a JSON list of [integer, finite number] pairs.
    """
    rows = orjson.loads(value)
    if not isinstance(rows, list):
        raise ValueError(f"expected a JSON list, found {type(rows).__name__}")
    posts = []
    try:
        for post, score in rows:
            number = float(score)
            if type(post) is not int or not math.isfinite(number):
                raise ValueError(f"{[post, score]!r:.80}")
            posts.append((post, number))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"not a list of [post_id, score] pairs: {error}") from None
    return posts


def encode_object(fields: dict[str, Any]) -> str:
    """Encode a manifest, an experiment or a post; the order of keys is kept."""
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def decode_object(value: str | bytes) -> dict[str, Any]:
    """Decode what `encode_object` wrote.

    Raises
    ------
    ValueError
        If the value is not a JSON object.
    """
    try:
        fields = json.loads(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, found {type(fields).__name__}")
    return fields


def _round(score: float) -> float:
    """Round a score; a whole number becomes an int (NaN and infinities are left to the encoder)."""
    rounded = round(score, SCORE_DECIMALS)
    return int(rounded) if rounded.is_integer() else rounded
