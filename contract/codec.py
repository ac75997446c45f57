"""How values look in Redis: encode and decode, side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from operator import add
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


class ListEncoder:
    """Encodes lists of the same posts as `encode_list` does; makes the text of each post and score once.

    Parameters
    ----------
    post_ids
        The posts; lists name them by their places in here.
    """

    def __init__(self, post_ids: Iterable[int]) -> None:
        self._posts = [f"[{int(post_id)}," for post_id in post_ids]
        self._scores = _Scores()

    def encode(self, places: Iterable[int], scores: Iterable[int]) -> str:
        """Encode one list, best first, from places of posts and scores in units of the last decimal kept."""
        posts = map(self._posts.__getitem__, places)
        return f"[{','.join(map(add, posts, map(self._scores.__getitem__, scores)))}]"


class _Scores(dict[int, str]):
    """Each score in units of the last decimal -> its text, with what closes a pair."""

    def __missing__(self, units: int) -> str:
        text = self[units] = f"{json.dumps(_short(units / 10**SCORE_DECIMALS))}]"
        return text


def decode_list(value: str | bytes) -> Ranked:
    """Decode what `encode_list` wrote.

    Raises
    ------
    ValueError
        If the value is not a JSON list of [integer, finite number] pairs.
    """
    rows = _parse(value)
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
