"""Encode and decode the values in Redis."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any, NamedTuple

import orjson

from contract.ids import Id, IdKind

SCORE_DECIMALS = 3

LIST_HEAD = 5
"""Posts at the head of a list: what most users see."""

Ranked = list[tuple[Id, float]]
"""Posts with their scores, best first."""

NO_PROBABILITIES: dict[int, float] = {}


class StoredList(NamedTuple):
    """A list as it is stored.

    `probabilities` has, by index in the list, the probability with which the post of an explored place
    was drawn; it is empty for most lists.
    """

    posts: Ranked
    probabilities: dict[int, float] = NO_PROBABILITIES


def encode_list(posts: Iterable[Sequence[Any]]) -> str:
    """Encode a ranked list as `[[post_id, score], ...]`; scores keep three decimals.

    A post in an explored place has a third value, the probability of its draw.

    Raises
    ------
    ValueError
        If a score is NaN or infinite.
    """
    rows = [
        [post if isinstance(post, str) else int(post), _round(float(score)), *probability]
        for post, score, *probability in posts
    ]
    return json.dumps(rows, separators=(",", ":"), allow_nan=False)


def decode_list(value: str | bytes, kind: IdKind | None = None) -> Ranked:
    """Decode the posts and scores of what `encode_list` wrote; raises as `decode_stored_list` does."""
    return decode_stored_list(value, kind).posts


def decode_stored_list(value: str | bytes, kind: IdKind | None = None) -> StoredList:
    """Decode what `encode_list` wrote.

    Raises
    ------
    ValueError
        If the value is not a JSON list of [post_id, finite number], some with a probability, or an id
        is a number where `kind` has text, or text where it has numbers.
    """
    rows = orjson.loads(value)
    if not isinstance(rows, list):
        raise ValueError(f"expected a JSON list, found {type(rows).__name__}")
    try:
        try:
            return StoredList(_decode_pairs(rows, kind))
        except ValueError:  # few lists have explored places
            probabilities = _pop_probabilities(rows)
            return StoredList(_decode_pairs(rows, kind), probabilities)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"not a list of [post_id, score] pairs: {error}") from None


def _decode_pairs(rows: list[Any], kind: IdKind | None) -> Ranked:
    """Check the rows of a list; without a kind, all ids must be of the type of the first one."""
    if kind is None:
        has_text = any(isinstance(row, list) and isinstance(row[0], str) for row in rows[:1] if row)
        kind = IdKind.TEXT if has_text else IdKind.NUMBER
    id_type = int if kind is IdKind.NUMBER else str
    posts: Ranked = []
    for post, score in rows:
        number = float(score)
        if type(post) is not id_type or not isfinite(number):
            raise ValueError(f"{[post, score]!r:.80}")
        posts.append((post, number))
    return posts


def _pop_probabilities(rows: list[Any]) -> dict[int, float]:
    """Remove the third value of rows that have one, and return it by index."""
    return {
        index: check_probability(row.pop())
        for index, row in enumerate(rows)
        if isinstance(row, list) and len(row) == 3
    }


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


def check_probability(value: Any) -> float:
    """Check a probability that was read from JSON: a number above 0 and at most 1.

    Raises
    ------
    ValueError
        It is anything else.
    """
    if type(value) not in (int, float) or not 0 < value <= 1:
        raise ValueError(f"{value!r:.40} is not a probability")
    return float(value)


def _round(score: float) -> float:
    """Round a score; a whole number becomes an int (NaN and infinities are left to the encoder)."""
    rounded = round(score, SCORE_DECIMALS)
    return int(rounded) if rounded.is_integer() else rounded
