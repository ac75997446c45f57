"""The Flask app: routes, and the JSON they answer with."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, jsonify, request
from flask.json.provider import DefaultJSONProvider
from redis import Redis

from contract.experiment import CONTROL
from contract.keys import Keys
from contract.settings import Settings
from serving.answer import Answer, answer_popular
from serving.cursor import encode_cursor
from serving.lists import Lists
from serving.parameters import check_time, parse_cursor, parse_id, parse_limit, single
from serving.problems import register_problems
from serving.refresh import LiveState
from serving.service import Service
from serving.state import Post, Run

EXTENSION = "overnight"
LISTS_MAX_AGE_SECONDS = 5
NO_TEXT = Post(text="", topic="")


class _Json(DefaultJSONProvider):
    """Compact JSON in UTF-8, fields in the order given."""

    sort_keys = False
    ensure_ascii = False
    compact = True


def create_app(settings: Settings, redis: Redis, refresh_redis: Redis | None = None) -> Flask:
    """Make the app. Nothing connects until the first request, or until `live.start()`.

    Parameters
    ----------
    settings
        Key prefix, longest list, how often the state is refreshed.
    redis
        Client for the lookup of a request: short timeouts, no retries.
    refresh_redis
        Client for the refresh, which may wait longer; `redis` if not given.
    """
    app = Flask("overnight", static_folder=None)
    app.json = _Json(app)
    # A doubled slash is an unknown route, not a redirect.
    app.url_map.merge_slashes = False
    live = LiveState(settings, redis if refresh_redis is None else refresh_redis)
    service = Service(settings.top_n, Keys(settings.key_prefix), Lists(redis), live)
    app.extensions[EXTENSION] = service
    app.before_request(live.start)
    register_problems(app)
    _add_list_routes(app, service)
    _add_health_routes(app, service)
    return app


def _add_list_routes(app: Flask, service: Service) -> None:
    @app.get("/users/<user_id>/recommendations")
    def recommendations(user_id: str) -> Response:
        user = parse_id("user_id", user_id)
        limit = parse_limit(single(request.args, "limit"), service.top_n)
        cursor = parse_cursor(single(request.args, "cursor"), user)
        answer = service.recommend(service.state(), user, limit, cursor)
        following = answer.next_cursor
        next_cursor = None if following is None else encode_cursor(following, user)
        return _cached(jsonify({"user_id": user, **_fields(answer), "next_cursor": next_cursor}))

    @app.get("/posts/popular")
    def popular() -> Response:
        limit = parse_limit(single(request.args, "limit"), service.top_n)
        state = service.state()
        return _cached(jsonify(_fields(answer_popular(state, state.run_of(CONTROL), limit))))

    @app.get("/posts/<post_id>/similar")
    def similar(post_id: str) -> Response:
        post = parse_id("post_id", post_id)
        limit = parse_limit(single(request.args, "limit"), service.top_n)
        given = single(request.args, "user_id")
        user = None if given is None else parse_id("user_id", given)
        state = service.state()
        run = state.run_of(CONTROL) if user is None else state.run_for(user)
        answer = service.similar(state, run, post, limit)
        return _cached(jsonify({"post_id": post, **_fields(answer)}))

    # Answered with and without the last slash: not every client follows a redirect.
    @app.get("/post/recommendations/", strict_slashes=False)
    def post_recommendations() -> Response:
        user = parse_id("id", single(request.args, "id"))
        check_time(single(request.args, "time"))
        limit = parse_limit(single(request.args, "limit"), service.top_n)
        state = service.state()
        answer = service.recommend(state, user, limit, None)
        posts = []
        for recommendation in answer.recommendations:
            post = state.posts.get(recommendation.post_id, NO_TEXT)
            posts.append({"id": recommendation.post_id, "text": post.text, "topic": post.topic})
        return _cached(jsonify({"exp_group": answer.run.variant, "recommendations": posts}))


def _add_health_routes(app: Flask, service: Service) -> None:
    @app.get("/healthz")
    def healthz() -> Response:
        return jsonify({"status": "alive"})

    @app.get("/readyz")
    def readyz() -> Response:
        runs = service.state().runs
        ages = {
            variant: {"run_id": run.run_id, "age_seconds": _age_seconds(run)} for variant, run in runs.items()
        }
        return jsonify({"status": "ready", "runs": ages})


def _fields(answer: Answer) -> dict[str, Any]:
    return {
        "variant": answer.run.variant,
        "run_id": answer.run.run_id,
        "source": answer.source,
        "stale": answer.stale,
        "age_seconds": _age_seconds(answer.run),
        "recommendations": [recommendation._asdict() for recommendation in answer.recommendations],
    }


def _age_seconds(run: Run) -> int:
    """Return whole seconds since the run went live; 0 where clocks disagree."""
    return max(0, int((datetime.now(UTC) - run.published_at).total_seconds()))


def _cached(response: Response) -> Response:
    response.cache_control.private = True
    response.cache_control.max_age = LISTS_MAX_AGE_SECONDS
    return response
