"""What the routes of a feed answer, made from plain arguments: the same whoever took the request."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson
from werkzeug.datastructures import MultiDict

from serving.answer import Answer
from serving.cursor import encode_cursor
from serving.parameters import check_time, parse_cursor, parse_id, parse_limit, single
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
