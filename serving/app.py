"""Create the Flask app: hooks, then routes, then the optional parts."""

from __future__ import annotations

from flask import Flask
from flask.json.provider import DefaultJSONProvider
from redis import Redis

from contract.keys import Keys
from contract.settings import Settings
from serving.auth import add_auth
from serving.exposures import ExposureQueue
from serving.list_store import ListStore
from serving.metrics import Metrics
from serving.problems import register_problems
from serving.refresher import LiveState
from serving.routes import add_feed_routes, add_operator_routes
from serving.service import Service
from serving.telemetry import add_telemetry
from serving.tuned.fast_path import FastPath

EXTENSION = "overnight"


class _Json(DefaultJSONProvider):
    """Compact JSON in UTF-8, with fields in the order given."""

    sort_keys = False
    ensure_ascii = False
    compact = True


def create_app(
    settings: Settings, redis: Redis, refresh_redis: Redis | None = None, *, tuned: bool = True
) -> Flask:
    """Create the app. It connects to Redis on the first request, or on `live.start()`.

    Parameters
    ----------
    redis
        Client for requests: short timeouts, no retries.
    refresh_redis
        Client for the refresh and the exposures, with longer timeouts; `redis` if not given.
    tuned
        Whether to use the optional parts of `serving.tuned`. The answers are the same without.
    """
    app = Flask("overnight", static_folder=None)
    app.json = _Json(app)
    app.url_map.merge_slashes = False  # a doubled slash is an unknown route, not a redirect
    keys = Keys(settings.stores.key_prefix)
    metrics = Metrics()
    refresh_redis = redis if refresh_redis is None else refresh_redis
    lists = ListStore(redis, keys, metrics, tuned=tuned)
    service = Service(
        top_n=settings.night.top_n,
        keys=keys,
        lists=lists,
        live=LiveState(settings, refresh_redis, metrics, lists.keep_connected),
        metrics=metrics,
        exposures=ExposureQueue(settings, refresh_redis, metrics) if settings.experiment.exposures else None,
    )
    app.extensions[EXTENSION] = service
    add_telemetry(app, service, access_log=settings.serving.access_log)
    add_auth(app, settings)
    app.before_request(service.live.start)
    register_problems(app)
    add_feed_routes(app, service)
    add_operator_routes(app, service, settings)
    if tuned and not settings.serving.access_log:
        app.wsgi_app = FastPath(app.wsgi_app, service, settings)  # type: ignore[method-assign]
    return app
