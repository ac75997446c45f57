"""Entry point of gunicorn: `gunicorn -c serving/gunicorn.conf.py serving.wsgi:app`."""

from __future__ import annotations

import sys

from flask import Flask

from contract.errors import SettingsError
from contract.logs import configure_logging
from contract.settings import Settings
from contract.text import escape_controls
from serving.app import create_app
from serving.list_store import open_redis
from serving.telemetry import JsonLines

REFRESH_TIMEOUT_SECONDS = 1.0


def _create_app() -> Flask:
    settings = Settings.from_environment()
    configure_logging(settings, JsonLines())
    timeout_seconds = settings.serving.redis_timeout_ms / 1000
    refresh_seconds = max(REFRESH_TIMEOUT_SECONDS, timeout_seconds)
    return create_app(settings, open_redis(settings, timeout_seconds), open_redis(settings, refresh_seconds))


try:
    app = _create_app()
except SettingsError as error:
    print(f"error: {escape_controls(str(error))}", file=sys.stderr)
    sys.exit(error.exit_code)
