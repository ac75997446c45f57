"""Lists from serving, over HTTP."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from contract.errors import OvernightError
from contract.ids import Id, encode_id
from demo.gunicorn import http_get

EXPLORE = "explore"
"""Source of a post in an explored place, which is for posts that nobody knows yet."""

ADVICE = "Nothing you did is lost, and pages without lists work; try again in a moment"

ANSWER_SECONDS = 3
"""How long serving may take: a page then does without its lists."""


class ServingError(OvernightError):
    """Raised when serving does not answer, or answers with an error."""


@dataclass(frozen=True)
class Listed:
    """A post of a list: its score, its place in the stored list, from 1, and whether that one is explored."""

    post_id: Id
    score: float
    rank: int
    explored: bool = False


@dataclass(frozen=True)
class ServedList:
    """An answer of serving.

    Attributes
    ----------
    variant
        The variant of the A/B test that the list comes from.
    source
        `personal`, `popular` or `similar`.
    stale
        Whether serving cannot read Redis, or its runs are not there: it answers from memory.
    """

    variant: str
    run_id: str
    source: str
    posts: tuple[Listed, ...]
    stale: bool = False


def read_recommendations(serving_url: str, user_id: Id, limit: int) -> ServedList:
    """Return the first posts of a person's list.

    Raises
    ------
    ServingError
    """
    return _ask(f"{serving_url}/users/{encode_id(user_id)}/recommendations", limit=limit)


def read_similar(serving_url: str, post_id: Id, user_id: Id, limit: int) -> ServedList:
    """Return posts similar to one, by the models of the person's variant; `popular` if there is no list.

    Raises
    ------
    ServingError
    """
    return _ask(f"{serving_url}/posts/{encode_id(post_id)}/similar", limit=limit, user_id=user_id)


def _ask(url: str, **parameters: Any) -> ServedList:
    try:
        answer = http_get(f"{url}?{urlencode(parameters)}", ANSWER_SECONDS)
    except OSError as error:
        reason = getattr(error, "reason", error)  # urllib wraps the error
        raise ServingError(f"serving does not answer ({reason}). {ADVICE}") from None
    if answer.status != 200:
        raise ServingError(f"serving answered with status {answer.status}. {ADVICE}")
    found = json.loads(answer.body)
    posts = tuple(
        Listed(row["post_id"], row["score"], row["rank"], row.get("source") == EXPLORE)
        for row in found["recommendations"]
    )
    return ServedList(found["variant"], found["run_id"], found["source"], posts, found["stale"])
