"""Parse the parameters of a feed request and build the fields of its answer, without Flask."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import orjson
from werkzeug.datastructures import MultiDict

from contract.ids import MAX_LENGTH, Id, IdKind, is_text_id, parse_id
from serving.cursor import Cursor, decode_cursor, encode_cursor
from serving.problems import bad_parameter
from serving.recommend import Answer
from serving.service import Service
from serving.state import AssignedUser

HEADERS = (("Content-Type", "application/json"), ("Cache-Control", "private, max-age=5"))
"""Headers of every answer with posts."""

EXPLORE = "explore"
"""Source of a single post of an answer: it stands in an explored place."""

Arguments = MultiDict[str, str]


class Page(NamedTuple):
    """A page of a user's feed: the answer, its JSON fields, and whether it is a first page."""

    answer: Answer
    fields: dict[str, Any]
    user_id: Id
    first_page: bool


def get_recommendations(service: Service, user_id: str, arguments: Arguments) -> Page:
    """Answer `GET /users/<user_id>/recommendations`.

    Raises
    ------
    ProblemError
        A parameter is invalid, the cursor's run has been pruned, or no run was ever loaded.
    """
    state = service.state()
    parsed_id = check_parameter_id("user_id", user_id, state.ids.users)
    limit = parse_limit(get_single(arguments, "limit"), service.top_n)
    cursor = parse_cursor(get_single(arguments, "cursor"), parsed_id)
    user = with_segment(state.assign(parsed_id), arguments)
    answer = service.recommend(state, user, limit, cursor)
    next_cursor = None if answer.next_cursor is None else encode_cursor(answer.next_cursor, parsed_id)
    fields = {
        "user_id": parsed_id,
        "assigned_variant": user.variant,
        **answer_fields(answer),
        "next_cursor": next_cursor,
    }
    return Page(answer, fields, parsed_id, cursor is None)


def get_posts_with_texts(service: Service, arguments: Arguments) -> Page:
    """Answer `GET /post/recommendations/`.

    Raises
    ------
    ProblemError
        A parameter is invalid, or no run was ever loaded.
    """
    state = service.state()
    user_id = check_parameter_id("id", get_single(arguments, "id"), state.ids.users)
    check_time(get_single(arguments, "time"))
    limit = parse_limit(get_single(arguments, "limit"), service.top_n)
    user = with_segment(state.assign(user_id), arguments)
    answer = service.recommend(state, user, limit, None)
    post_ids = [recommendation.post_id for recommendation in answer.recommendations]
    texts = service.texts(state, post_ids)
    posts = [
        {"id": post_id, "text": post.text, "topic": post.topic}
        for post_id, post in zip(post_ids, texts, strict=True)
    ]
    return Page(answer, {"exp_group": answer.run.variant, "recommendations": posts}, user_id, True)


def answer_fields(answer: Answer) -> dict[str, Any]:
    """Return the fields that every answer with a list has."""
    recommendations: list[dict[str, Any]] = [
        {"post_id": post_id, "score": score, "rank": rank} for post_id, score, rank in answer.recommendations
    ]
    if answer.explored:
        probabilities = {post.rank: post.probability for post in answer.explored}
        for each in recommendations:
            if each["rank"] in probabilities:
                each |= {"source": EXPLORE, "probability": probabilities[each["rank"]]}
    fields = {
        "variant": answer.run.variant,
        "run_id": answer.run.run_id,
        "source": answer.source,
        "segment": answer.segment,
        "score_kind": answer.score_kind,
        "stale": answer.stale,
        "age_seconds": answer.run.age_seconds(datetime.now(UTC)),
        "recommendations": recommendations,
    }
    if answer.segment is None:
        del fields["segment"]
    return fields


def encode_body(fields: dict[str, Any]) -> bytes:
    """Encode the body of an answer."""
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


DEFAULT_LIMIT = 5
MAX_TIME_LENGTH = 100

_TIME = re.compile(rf"[^\x00-\x1f\x7f]{{0,{MAX_TIME_LENGTH}}}")
_DIGITS = re.compile("[0-9]{1,19}")  # not \d and not str.isdigit: both accept digits of other scripts


def parse_query(query: str) -> Arguments:
    """Parse a query string of WSGI. What is not UTF-8 becomes halves of surrogate pairs, as in no id."""
    text = query.encode("latin-1").decode(errors="surrogateescape")
    return MultiDict(parse_qsl(text, keep_blank_values=True, errors="surrogateescape"))


def get_single(arguments: Arguments, name: str) -> str | None:
    """Return a query parameter; None if it is not given. A repeated parameter is refused."""
    values = arguments.getlist(name)
    if len(values) > 1:
        raise bad_parameter(name, "must be given once")
    return values[0] if values else None


def check_parameter_id(name: str, text: str | None, kind: IdKind) -> Id:
    """Parse the id of a user or a post, as the network has them."""
    if text is None:
        raise bad_parameter(name, "is missing: give a user's id")
    try:
        return parse_id(text, kind)
    except ValueError as error:
        raise bad_parameter(name, str(error)) from None


def with_segment(user: AssignedUser, arguments: Arguments) -> AssignedUser:
    """Return the user in the segment that the request names, if their run has popular lists by segment."""
    name = user.run.popular_by
    return user if name is None else user._replace(segment=parse_segment(arguments, name))


def parse_segment(arguments: Arguments, name: str) -> str | None:
    """Parse a user's value of the attribute by which a run has popular lists; None if it is not given."""
    text = get_single(arguments, name)
    if text and not is_text_id(text):
        detail = f"must have at most {MAX_LENGTH} characters, none of them control characters"
        raise bad_parameter(name, detail)
    return text


def parse_limit(text: str | None, max_limit: int) -> int:
    """Parse the number of posts: 1 to `max_limit`; by default 5, or `max_limit` if that is less."""
    if text is None:
        return min(DEFAULT_LIMIT, max_limit)
    if not _DIGITS.fullmatch(text) or not 1 <= int(text) <= max_limit:
        raise bad_parameter("limit", f"must be a whole number from 1 to {max_limit}")
    return int(text)


def parse_cursor(text: str | None, user_id: Id) -> Cursor | None:
    """Parse the cursor of an earlier answer to this user; None if there is none."""
    if text is None:
        return None
    try:
        return decode_cursor(text, user_id)
    except ValueError:
        raise bad_parameter("cursor", "must be the next_cursor of an earlier answer to this user") from None


def check_time(text: str | None) -> None:
    """Check that the time is short and has no control characters, if one is given.

    Existing clients send the time of the request, in formats of their own. The
    lists are made at night and do not depend on it, so any format is accepted.
    """
    if text is not None and not _TIME.fullmatch(text):
        detail = f"must have at most {MAX_TIME_LENGTH} characters, none of them control characters"
        raise bad_parameter("time", detail)
