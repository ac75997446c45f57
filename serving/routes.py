"""Flask routes of the feed and of operators, and the OpenAPI document."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flask import Flask, Response, g, jsonify, request
from prometheus_client import CONTENT_TYPE_LATEST

from contract.experiment import CONTROL, TEST
from contract.settings import Settings
from serving.auth import METRICS_PATH
from serving.handlers import (
    HEADERS,
    Page,
    answer_fields,
    encode_body,
    get_posts_with_texts,
    get_recommendations,
    get_single,
    parse_id,
    parse_limit,
)
from serving.recommend import Answer, answer_popular
from serving.service import Service
from serving.state import State

RECOMMENDATIONS = "/users/<user_id>/recommendations"
WITH_TEXTS = "/post/recommendations/"
OPENAPI_FILE = Path(__file__).with_name("openapi.json")
SECONDS_PER_HOUR = 3600


def add_feed_routes(app: Flask, service: Service) -> None:
    """Add the routes that answer with posts."""

    @app.get(RECOMMENDATIONS)
    def recommendations(user_id: str) -> Response:
        return _respond_with_page(get_recommendations(service, user_id, request.args))

    @app.get("/posts/popular")
    def popular() -> Response:
        limit = parse_limit(get_single(request.args, "limit"), service.top_n)
        state = service.state()
        answer = answer_popular(state, state.run_of(CONTROL), limit)
        return _respond(answer, answer_fields(answer))

    @app.get("/posts/<post_id>/similar")
    def similar(post_id: str) -> Response:
        post = parse_id("post_id", post_id)
        limit = parse_limit(get_single(request.args, "limit"), service.top_n)
        given = get_single(request.args, "user_id")
        user = None if given is None else parse_id("user_id", given)
        state = service.state()
        run = state.run_of(CONTROL) if user is None else state.assign(user).run
        answer = service.similar(state, run, post, limit)
        return _respond(answer, {"post_id": post, **answer_fields(answer)})

    # Answered with and without the last slash: not every client follows a redirect.
    @app.get(WITH_TEXTS, strict_slashes=False)
    def post_recommendations() -> Response:
        return _respond_with_page(get_posts_with_texts(service, request.args))


def _respond_with_page(page: Page) -> Response:
    g.first_page_user = page.first_page_user  # read by telemetry
    return _respond(page.answer, page.fields)


def _respond(answer: Answer, fields: dict[str, Any]) -> Response:
    g.answer = answer  # read by telemetry
    return Response(encode_body(fields), headers=HEADERS)


def add_operator_routes(app: Flask, service: Service, settings: Settings) -> None:
    """Add health, readiness, metrics and the OpenAPI document."""
    document = load_openapi(settings.night.top_n)

    @app.get("/healthz")
    def healthz() -> Response:
        return jsonify({"status": "alive"})

    @app.get("/readyz")
    def readyz() -> Response:
        state, now = service.state(), datetime.now(UTC)
        runs = {
            variant: {"run_id": run.run_id, "age_seconds": run.age_seconds(now)}
            for variant, run in state.runs.items()
        }
        warnings = find_warnings(state, now, settings.serving.stale_after_hours)
        return jsonify({"status": "ready", "warnings": warnings, "runs": runs})

    @app.get(METRICS_PATH)
    def metrics() -> Response:
        return Response(service.metrics.exposition(service.live.current), content_type=CONTENT_TYPE_LATEST)

    @app.get("/openapi.json")
    def openapi() -> Response:
        return jsonify(document)


def load_openapi(top_n: int) -> dict[str, Any]:
    """Return the OpenAPI document, with the maximum and default of `limit` for lists of `top_n`."""
    document: dict[str, Any] = json.loads(OPENAPI_FILE.read_text())
    limit = document["components"]["parameters"]["limit"]["schema"]
    limit["maximum"] = top_n
    limit["default"] = min(limit["default"], top_n)
    return document


def find_warnings(state: State, now: datetime, stale_after_hours: float) -> list[str]:
    """Return what an operator should look at although requests are answered, a line each."""
    warnings = []
    if state.stale:
        warnings.append("Redis cannot be read; the state loaded before is served")
    for variant, run in state.runs.items():
        hours = run.age_seconds(now) / SECONDS_PER_HOUR
        if hours > stale_after_hours:
            warnings.append(f"the live run of {variant} is {hours:.0f} hours old; was a night missed?")
    test_share = state.experiment.percent_test
    for variant, share in ((CONTROL, 100 - test_share), (TEST, test_share)):
        if share and variant not in state.runs:
            instead = state.run_of(variant).variant
            warnings.append(f"{variant} has no live run: its {share} % of users get {instead}'s lists")
    return warnings
