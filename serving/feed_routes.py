"""The routes that a feed asks, and the JSON they answer with."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
from flask import Flask, Response, g, request

from contract.experiment import CONTROL
from serving.answer import Answer, answer_popular
from serving.cursor import encode_cursor
from serving.parameters import check_time, parse_cursor, parse_id, parse_limit, single
from serving.service import Service

HEADERS = (("Content-Type", "application/json"), ("Cache-Control", "private, max-age=5"))
"""Of every answer with posts: who asks again within five seconds may be shown the same."""


def add_feed_routes(app: Flask, service: Service) -> None:
    """Add the routes that answer with posts."""

    @app.get("/users/<user_id>/recommendations")
    def recommendations(user_id: str) -> Response:
        user = parse_id("user_id", user_id)
        limit = parse_limit(single(request.args, "limit"), service.top_n)
        cursor = parse_cursor(single(request.args, "cursor"), user)
        state = service.state()
        answer = service.recommend(state, user, limit, cursor)
        following = answer.next_cursor
        next_cursor = None if following is None else encode_cursor(following, user)
        assigned = state.experiment.variant_of(user)
        fields = {"user_id": user, "assigned_variant": assigned, **_fields(answer)}
        return _respond(answer, fields | {"next_cursor": next_cursor})

    @app.get("/posts/popular")
    def popular() -> Response:
        limit = parse_limit(single(request.args, "limit"), service.top_n)
        state = service.state()
        answer = answer_popular(state, state.run_of(CONTROL), limit)
        return _respond(answer, _fields(answer))

    @app.get("/posts/<post_id>/similar")
    def similar(post_id: str) -> Response:
        post = parse_id("post_id", post_id)
        limit = parse_limit(single(request.args, "limit"), service.top_n)
        given = single(request.args, "user_id")
        user = None if given is None else parse_id("user_id", given)
        state = service.state()
        run = state.run_of(CONTROL) if user is None else state.run_for(user)
        answer = service.similar(state, run, post, limit)
        return _respond(answer, {"post_id": post, **_fields(answer)})

    # Answered with and without the last slash: not every client follows a redirect.
    @app.get("/post/recommendations/", strict_slashes=False)
    def post_recommendations() -> Response:
        user = parse_id("id", single(request.args, "id"))
        check_time(single(request.args, "time"))
        limit = parse_limit(single(request.args, "limit"), service.top_n)
        state = service.state()
        answer = service.recommend(state, user, limit, None)
        post_ids = [recommendation.post_id for recommendation in answer.recommendations]
        texts = service.texts(state, post_ids)
        posts = [
            {"id": post_id, "text": post.text, "topic": post.topic}
            for post_id, post in zip(post_ids, texts, strict=True)
        ]
        return _respond(answer, {"exp_group": answer.run.variant, "recommendations": posts})


def _fields(answer: Answer) -> dict[str, Any]:
    return {
        "variant": answer.run.variant,
        "run_id": answer.run.run_id,
        "source": answer.source,
        "stale": answer.stale,
        "age_seconds": answer.run.age_seconds(datetime.now(UTC)),
        "recommendations": [
            {"post_id": post_id, "score": score, "rank": rank}
            for post_id, score, rank in answer.recommendations
        ],
    }


def _respond(answer: Answer, fields: dict[str, Any]) -> Response:
    g.answer = answer  # for what is counted of this request
    return Response(orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE), headers=HEADERS)
