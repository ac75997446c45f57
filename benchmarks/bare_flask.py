"""Flask apps that serving is compared with: one answers `{}`, one does one Redis GET before that."""

from __future__ import annotations

from typing import Any

from flask import Flask

from contract.keys import Keys
from contract.settings import Settings


def bare() -> Flask:
    """Make an app whose only route returns `{}`."""
    app = Flask("bare", static_folder=None)

    @app.get("/")
    def nothing() -> dict[str, Any]:
        return {}

    return app


def one_get(run_id: str) -> Flask:
    """Make an app whose only route gets a user's list from Redis, as serving does, and returns `{}`."""
    from serving.list_store import open_redis
    from serving.tuned.redis_get import RedisGet

    app = Flask("one_get", static_folder=None)
    settings = Settings.from_environment()
    keys, redis_get = Keys(settings.stores.key_prefix), RedisGet(open_redis(settings, 1.0))

    @app.get("/<int:user_id>")
    def get(user_id: int) -> dict[str, Any]:
        redis_get.get(keys.user(run_id, user_id))
        return {}

    return app
