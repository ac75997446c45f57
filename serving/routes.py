"""Flask routes of the feed and of operators, and the OpenAPI document."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flask import Flask, Response, g, jsonify, request
from prometheus_client import CONTENT_TYPE_LATEST
from werkzeug.routing import BaseConverter

from contract.columns import MAX_ID
from contract.experiment import CONTROL, TEST
from contract.ids import MAX_LENGTH, IdKind
from contract.settings import Settings
from serving.auth import METRICS_PATH
from serving.handlers import (
    HEADERS,
    Arguments,
    Page,
    answer_fields,
    check_parameter_id,
    encode_body,
    get_posts_with_texts,
    get_recommendations,
    get_single,
    parse_limit,
    parse_query,
    parse_segment,
)
from serving.problems import bad_parameter
from serving.recommend import Answer, answer_popular
from serving.service import Service
from serving.state import Run, State, newest_run

RECOMMENDATIONS = "/users/<user_id>/recommendations"
POPULAR = "/posts/popular"
WITH_TEXTS = "/post/recommendations/"


class AnyId(BaseConverter):
    """Matches an id in a path, which may hold slashes once it is decoded."""

    regex = r"(?s:.+)"
    part_isolating = False
    weight = 200


OPENAPI_FILE = Path(__file__).with_name("openapi.json")
SECONDS_PER_HOUR = 3600


def add_feed_routes(app: Flask, service: Service) -> None:
    """Add the routes that answer with posts."""
    app.url_map.converters["default"] = AnyId

    @app.get(RECOMMENDATIONS)
    def recommendations(user_id: str) -> Response:
        _check_path("user_id")
        return _respond_with_page(get_recommendations(service, user_id, _arguments()))

    @app.get(POPULAR)
    def popular() -> Response:
        arguments, state = _arguments(), service.state()
        limit = parse_limit(get_single(arguments, "limit"), service.top_n)
        run = state.run_of(CONTROL)
        segment = None if run.popular_by is None else parse_segment(arguments, run.popular_by)
        answer = answer_popular(state, run, limit, segment)
        return _respond(answer, answer_fields(answer))

    @app.get("/posts/<post_id>/similar")
    def similar(post_id: str) -> Response:
        _check_path("post_id")
        arguments, state = _arguments(), service.state()
        post = check_parameter_id("post_id", post_id, state.ids.posts)
        limit = parse_limit(get_single(arguments, "limit"), service.top_n)
        given = get_single(arguments, "user_id")
        user = None if given is None else check_parameter_id("user_id", given, state.ids.users)
        run = state.run_of(CONTROL) if user is None else state.assign(user).run
        answer = service.similar(state, run, post, limit)
        return _respond(answer, {"post_id": post, **answer_fields(answer)})

    # Answered with and without the last slash: not every client follows a redirect.
    @app.get(WITH_TEXTS, strict_slashes=False)
    def post_recommendations() -> Response:
        return _respond_with_page(get_posts_with_texts(service, _arguments()))


def _check_path(name: str) -> None:
    """Refuse a path that is not UTF-8: Flask has replaced what cannot be decoded."""
    try:
        request.environ["PATH_INFO"].encode("latin-1").decode()
    except UnicodeDecodeError:
        raise bad_parameter(name, "must be UTF-8, percent-encoded") from None


def _arguments() -> Arguments:
    return parse_query(request.environ.get("QUERY_STRING", ""))


def _respond_with_page(page: Page) -> Response:
    g.page = page  # read by telemetry
    return _respond(page.answer, page.fields)


def _respond(answer: Answer, fields: dict[str, Any]) -> Response:
    g.answer = answer  # read by telemetry
    return Response(encode_body(fields), headers=HEADERS)


def add_operator_routes(app: Flask, service: Service, settings: Settings) -> None:
    """Add health, readiness, metrics and the OpenAPI document."""

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
        state = service.live.current
        run = None if state is None else newest_run(state.runs.values())
        return jsonify(load_openapi(settings.night.top_n, run))


ID_SCHEMAS: dict[IdKind, dict[str, Any]] = {
    IdKind.NUMBER: {"type": "integer", "minimum": 0, "maximum": MAX_ID},
    IdKind.UUID: {
        "type": "string",
        "format": "uuid",
        "description": "Requests may have it in any case, and in braces; answers have lower case.",
    },
    IdKind.TEXT: {
        "type": "string",
        "minLength": 1,
        "maxLength": MAX_LENGTH,
        "pattern": r"^[^\x00-\x1f\x7f-\x9f]*$",
        "description": "Percent-encoded in a path, slashes too.",
        "examples": ["spring sale/7"],
    },
}
"""JSON schemas of ids; uuids and text are strings in JSON."""


def load_openapi(top_n: int, run: Run | None = None) -> dict[str, Any]:
    """Return the OpenAPI document for lists of `top_n`, and for the ids and the segments of a run.

    Without a run, for ids that are whole numbers.
    """
    document: dict[str, Any] = json.loads(OPENAPI_FILE.read_text())
    components = document["components"]
    limit = components["parameters"]["limit"]["schema"]
    limit["maximum"] = top_n
    limit["default"] = min(limit["default"], top_n)
    if run is not None:
        components["schemas"]["UserId"] = ID_SCHEMAS[run.ids.users]
        components["schemas"]["PostId"] = ID_SCHEMAS[run.ids.posts]
    if run is not None and run.popular_by is not None:
        components["parameters"]["segment"] |= {"name": run.popular_by}
        for path in (RECOMMENDATIONS, POPULAR, WITH_TEXTS):
            operation = document["paths"][path.replace("<", "{").replace(">", "}")]["get"]
            operation["parameters"].append({"$ref": "#/components/parameters/segment"})
    else:
        del components["parameters"]["segment"]
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
