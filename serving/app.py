"""The Flask app, put together: what every request passes, then the routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Flask
from flask.json.provider import DefaultJSONProvider
from redis import Redis

from contract.keys import Keys
from contract.settings import Settings
from serving.auth import guard
from serving.exposures import Exposures
from serving.list_store import Lists
from serving.metrics import Metrics
from serving.problems import register_problems
from serving.refresher import LiveState
from serving.routes import add_feed_routes, add_operator_routes
from serving.service import Service
from serving.telemetry import observe
from serving.tuned.fast_path import Front

EXTENSION = "overnight"


class _Json(DefaultJSONProvider):
    """Compact JSON in UTF-8, fields in the order given."""

    sort_keys = False
    ensure_ascii = False
    compact = True


class _Plain(Flask):
    """Without the look, at every step of every request, whether a function is a coroutine: none is."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function as it is."""
        return func


def create_app(settings: Settings, redis: Redis, refresh_redis: Redis | None = None) -> Flask:
    """Make the app. Nothing connects until the first request, or until `live.start()`.

    Parameters
    ----------
    settings
        Key prefix, longest list, how often the state is refreshed, who may ask.
    redis
        Client for the lookup of a request: short timeouts, no retries.
    refresh_redis
        Client for the refresh and the exposures, which may wait longer; `redis` if not given.
    """
    app = _Plain("overnight", static_folder=None)
    app.json = _Json(app)
    # A doubled slash is an unknown route, not a redirect.
    app.url_map.merge_slashes = False
    keys = Keys(settings.stores.key_prefix)
    metrics = Metrics()
    patient = redis if refresh_redis is None else refresh_redis
    live = LiveState(settings, patient, metrics)
    exposures = Exposures(settings, patient, metrics) if settings.experiment.exposures else None
    service = Service(settings.night.top_n, keys, Lists(redis, keys, metrics), live, metrics, exposures)
    app.extensions[EXTENSION] = service
    observe(app, service, access_log=settings.serving.access_log)
    guard(app, settings)
    app.before_request(live.start)
    register_problems(app)
    add_feed_routes(app, service)
    add_operator_routes(app, service, settings)
    if not settings.serving.access_log:
        app.wsgi_app = Front(app.wsgi_app, service, settings)  # type: ignore[method-assign]
    return app
