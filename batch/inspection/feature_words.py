"""Features of the models in words, and the parts of a score for people to read.

Imports neither numpy nor LightGBM: the console reads what `explain --json` printed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

COUNT, RATE, DAYS, AGO, NUMBER = "count", "rate", "days", "ago", "number"
"""How a value is printed: `count` is stored as log(1 + count)."""

NAMED = {
    "user_likes": ("likes by the user", COUNT),
    "user_views": ("views by the user", COUNT),
    "user_recent": ("user's actions in 7 days", COUNT),
    "user_days_since": ("user's last action", AGO),
    "user_like_rate": ("likes per view of the user", RATE),
    "post_age_days": ("age of the post", DAYS),
    "post_text_length": ("characters of the text", NUMBER),
    "post_likes": ("likes of the post", COUNT),
    "post_recent_likes": ("its likes in 7 days", COUNT),
    "post_trend": ("of its likes, in 7 days", RATE),
    "post_views": ("views of the post", COUNT),
    "post_like_rate": ("likes per view of the post", RATE),
    "post_last_like": ("its last like", AGO),
    "post_likes_fading_3_days": ("likes, half-life 3 days", COUNT),
    "post_likes_fading_30_days": ("likes, half-life 30 days", COUNT),
    "post_likes_fading_300_days": ("likes, half-life 300 days", COUNT),
    "post_tfidf_sum": ("sum of the words' weights", NUMBER),
    "post_tfidf_mean": ("mean of the words' weights", NUMBER),
    "post_tfidf_max": ("largest weight of a word", NUMBER),
    "post_words": ("words of the text", COUNT),
}
"""Name of a feature -> what it is, short enough for a bar's label at 320 px, and how its value is printed."""

GROUPED = {
    re.compile("post_text_[0-9]+"): "which words the text has",
    re.compile("post_embedding_[0-9]+"): "what the text means",
}
"""Components of a text: single ones mean nothing to people, so they are added up."""

AFFINITIES = {
    "share": ("{group} in their likes", RATE),
    "like_rate": ("likes per view, {group}", RATE),
    "people": ("similar users, {group}", NUMBER),
}
"""Measure of a user and a group of posts -> the same."""
GROUPS = {"cluster": "such texts"}
"""Grouping of posts -> one of its groups, where that is not `this topic` and the like."""

BASE, FACTORS, FURTHER = "average score of the forest", "taste shared with other users", "{} further features"

MAX_PARTS = 12
"""Parts that are named; the others are added up."""

MIN_DIFFERENCE = 0.001
"""Scores in lists have three decimals."""


@dataclass(frozen=True)
class ScorePart:
    """A part of a score: its words, its value in words (empty without one) and what it adds."""

    words: str
    value: str
    adds: float


@cache
def name_feature(name: str, kind: str) -> str:
    """Return what a feature is; `kind` is `user`, `post` or `affinity`, as in `explain --json`."""
    if kind == "affinity":
        grouping, _, measure = name.partition("_")
        if measure in AFFINITIES:
            return AFFINITIES[measure][0].format(group=GROUPS.get(grouping, f"this {grouping}"))
    if name in NAMED:
        return NAMED[name][0]
    for pattern, words in GROUPED.items():
        if pattern.fullmatch(name):
            return words
    return f"{kind}'s {name.removeprefix(f'{kind}_').replace('_', ' ')}"


def describe_value(name: str, kind: str, value: float | str | None) -> str:
    """Return a feature's value as people write it, such as `120`, `12 %` or `3.5 days`."""
    if value is None:
        return "unknown"
    if isinstance(value, str):
        return value
    unit = NAMED.get(name, ("", NUMBER))[1]
    if kind == "affinity":
        unit = AFFINITIES.get(name.partition("_")[2], ("", NUMBER))[1]
    if unit == COUNT:
        return f"{math.expm1(value):,.0f}"
    if unit == RATE:
        return f"{100 * value:.{1 if value < 0.1 else 0}f} %"
    if unit in (DAYS, AGO):
        days = f"{value:,.{1 if value < 10 else 0}f} days"
        return f"{days} ago" if unit == AGO else days
    return f"{value:.4g}"


def split_score(explanation: Mapping[str, Any], count: int = MAX_PARTS) -> list[ScorePart]:
    """Return the parts of a score: features by what they add, largest first, the others together, the base.

    They add up to the score.

    Parameters
    ----------
    explanation
        Fields of `explain --json`.
    """
    parts: list[ScorePart] = []
    grouped: dict[str, float] = {}
    for row in explanation["contributions"]:
        name, kind, adds = row["feature"], row["kind"], row["contribution"]
        words = name_feature(name, kind)
        if words in GROUPED.values():
            grouped[words] = grouped.get(words, 0.0) + adds
        else:
            parts.append(ScorePart(words, describe_value(name, kind, row["value"]), adds))
    parts += [ScorePart(words, "", adds) for words, adds in grouped.items()]
    if explanation["dot_product"] is not None:
        parts.append(ScorePart(FACTORS, "", explanation["dot_product"]))
    parts.sort(key=lambda part: -abs(part.adds))
    named, rest = parts[:count], parts[count:]
    if rest:
        named.append(ScorePart(FURTHER.format(len(rest)), "", sum(part.adds for part in rest)))
    return [*named, ScorePart(BASE, "", explanation["base_value"])]


def has_other_score(explanation: Mapping[str, Any]) -> bool:
    """Return whether the list has another score for the post than its explanation."""
    served: float | None = explanation["served_score"]
    return served is not None and abs(served - explanation["score"]) > MIN_DIFFERENCE
