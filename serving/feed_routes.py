"""The routes that a feed asks, in Flask."""

from __future__ import annotations

from typing import Any

from flask import Flask, Response, g, request

from contract.experiment import CONTROL
from serving.answer import Answer, answer_popular
from serving.pages import HEADERS, Page, encode, fields_of, posts_with_texts
from serving.pages import recommendations as page_of
from serving.parameters import parse_id, parse_limit, single
from serving.service import Service

RECOMMENDATIONS = "/users/<user_id>/recommendations"
WITH_TEXTS = "/post/recommendations/"


def add_feed_routes(app: Flask, service: Service) -> None:
    """Add the routes that answer with posts."""

    @app.get(RECOMMENDATIONS)
    def recommendations(user_id: str) -> Response:
        return _respond_first(page_of(service, user_id, request.args))

    @app.get("/posts/popular")
    def popular() -> Response:
        limit = parse_limit(single(request.args, "limit"), service.top_n)
        state = service.state()
        answer = answer_popular(state, state.run_of(CONTROL), limit)
        return _respond(answer, fields_of(answer))

    @app.get("/posts/<post_id>/similar")
    def similar(post_id: str) -> Response:
        post = parse_id("post_id", post_id)
        limit = parse_limit(single(request.args, "limit"), service.top_n)
        given = single(request.args, "user_id")
        user = None if given is None else parse_id("user_id", given)
        state = service.state()
        run = state.run_of(CONTROL) if user is None else state.run_for(user)
        answer = service.similar(state, run, post, limit)
        return _respond(answer, {"post_id": post, **fields_of(answer)})

    # Answered with and without the last slash: not every client follows a redirect.
    @app.get(WITH_TEXTS, strict_slashes=False)
    def post_recommendations() -> Response:
        return _respond_first(posts_with_texts(service, request.args))


def _respond_first(page: Page) -> Response:
    g.first_of = page.first_of  # for its exposure
    return _respond(page.answer, page.fields)


def _respond(answer: Answer, fields: dict[str, Any]) -> Response:
    g.answer = answer  # for what is counted of this request
    return Response(encode(fields), headers=HEADERS)
