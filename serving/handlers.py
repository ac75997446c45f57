"""What the routes of a feed answer, made from plain arguments: the same whoever took the request."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson
from werkzeug.datastructures import MultiDict

from serving.cursor import Cursor, decode_cursor, encode_cursor
from serving.problems import bad_parameter
from serving.recommend import Answer
from serving.service import Service

HEADERS = (("Content-Type", "application/json"), ("Cache-Control", "private, max-age=5"))
"""Of every answer with posts: who asks again within five seconds may be shown the same."""

Arguments = MultiDict[str, str]


class Page(NamedTuple):
    """What was decided, the fields that tell it, and whose first page it is (None for a later one)."""

    answer: Answer
    fields: dict[str, Any]
    first_of: int | None


def recommendations(service: Service, user_id: str, arguments: Arguments) -> Page:
    """Answer `GET /users/<user_id>/recommendations`.

    Raises
    ------
    ProblemError
        A parameter is wrong, its cursor's run is gone, or no run was ever loaded.
    """
    user = parse_id("user_id", user_id)
    limit = parse_limit(single(arguments, "limit"), service.top_n)
    cursor = parse_cursor(single(arguments, "cursor"), user)
    state = service.state()
    answer = service.recommend(state, user, limit, cursor)
    following = answer.next_cursor
    next_cursor = None if following is None else encode_cursor(following, user)
    assigned = state.experiment.variant_of(user)
    told = {"user_id": user, "assigned_variant": assigned, **fields_of(answer), "next_cursor": next_cursor}
    return Page(answer, told, user if cursor is None else None)


def posts_with_texts(service: Service, arguments: Arguments) -> Page:
    """Answer `GET /post/recommendations/`.

    Raises
    ------
    ProblemError
        A parameter is wrong, or no run was ever loaded.
    """
    user = parse_id("id", single(arguments, "id"))
    check_time(single(arguments, "time"))
    limit = parse_limit(single(arguments, "limit"), service.top_n)
    state = service.state()
    answer = service.recommend(state, user, limit, None)
    post_ids = [recommendation.post_id for recommendation in answer.recommendations]
    texts = service.texts(state, post_ids)
    posts = [
        {"id": post_id, "text": post.text, "topic": post.topic}
        for post_id, post in zip(post_ids, texts, strict=True)
    ]
    return Page(answer, {"exp_group": answer.run.variant, "recommendations": posts}, user)


def fields_of(answer: Answer) -> dict[str, Any]:
    """Return what every answer with a list tells."""
    return {
        "variant": answer.run.variant,
        "run_id": answer.run.run_id,
        "source": answer.source,
        "score_kind": answer.score_kind,
        "stale": answer.stale,
        "age_seconds": answer.run.age_seconds(datetime.now(UTC)),
        "recommendations": [
            {"post_id": post_id, "score": score, "rank": rank}
            for post_id, score, rank in answer.recommendations
        ],
    }


def encode(fields: dict[str, Any]) -> bytes:
    """Write the body of an answer."""
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


MAX_ID = 2**63 - 1
DEFAULT_LIMIT = 5
LONGEST_TIME = 40

# Not \d and not str.isdigit: both take digits of other scripts as well.
_DIGITS = re.compile(r"[0-9]{1,19}")


def single(arguments: MultiDict[str, str], name: str) -> str | None:
    """Return a query parameter's text, None when it is not given; given twice it is refused."""
    values = arguments.getlist(name)
    if len(values) > 1:
        raise bad_parameter(name, "must be given once")
    return values[0] if values else None


def parse_id(name: str, text: str | None) -> int:
    """Return a user's or a post's id: a whole number from 0 to 2^63 - 1."""
    if text is None:
        raise bad_parameter(name, "is missing: give a user's id")
    if not _DIGITS.fullmatch(text) or int(text) > MAX_ID:
        raise bad_parameter(name, f"must be a whole number from 0 to {MAX_ID}")
    return int(text)


def parse_limit(text: str | None, most: int) -> int:
    """Return how many posts are wanted: 1 to `most`; 5 (or `most`, if less) when not given."""
    if text is None:
        return min(DEFAULT_LIMIT, most)
    if not _DIGITS.fullmatch(text) or not 1 <= int(text) <= most:
        raise bad_parameter("limit", f"must be a whole number from 1 to {most}")
    return int(text)


def parse_cursor(text: str | None, user_id: int) -> Cursor | None:
    """Return the place in a list that an earlier answer to this user pointed at."""
    if text is None:
        return None
    try:
        return decode_cursor(text, user_id)
    except ValueError:
        raise bad_parameter("cursor", "must be the next_cursor of an earlier answer to this user") from None


def check_time(text: str | None) -> None:
    """Refuse a time that is not one.

    Existing clients send the time of the request. The lists are made at night
    and do not depend on it, so it is checked and not used, and may be left out.
    """
    if text is None:
        return
    try:
        # Python's parser lets a NUL and digits of other scripts through.
        if len(text) > LONGEST_TIME or not text.isascii() or not text.isprintable():
            raise ValueError
        datetime.fromisoformat(text)
    except ValueError:
        raise bad_parameter("time", "must be an ISO 8601 time, like 2021-12-29T21:00:00") from None
