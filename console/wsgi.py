"""Entry point of gunicorn: `gunicorn -c console/gunicorn.conf.py console.wsgi:app`."""

from __future__ import annotations

import sys

from flask import Flask

from batch import postgres, redis_client
from batch.context import Stores
from batch.runs.ledger import actor
from console.app import create_app
from contract.errors import SettingsError
from contract.logs import configure_logging
from contract.settings import Settings
from contract.text import escape_controls


def _create_app() -> Flask:
    settings = Settings.from_environment()
    configure_logging(settings)
    engine = postgres.open_engine(settings, "overnight console")
    client = redis_client.open_redis(settings, interactive=True)
    return create_app(settings, Stores(settings, engine, client, actor("console")))


try:
    app = _create_app()
except SettingsError as error:
    print(f"error: {escape_controls(str(error))}", file=sys.stderr)
    sys.exit(error.exit_code)
