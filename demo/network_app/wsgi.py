"""Entry point of gunicorn: `gunicorn -c demo/network_app/gunicorn.conf.py demo.network_app.wsgi:app`."""

from __future__ import annotations

import sys

from flask import Flask

from batch.formatting import echo
from console.stores import limit_replies
from contract.errors import OvernightError
from contract.logs import configure_logging
from contract.settings import Settings
from demo.network_app.app import create_app
from demo.network_app.config import Config


def _create_app() -> Flask:
    settings = Settings.from_environment()
    configure_logging(settings)
    limit_replies()
    return create_app(Config.from_environment(), settings)


try:
    app = _create_app()
except OvernightError as error:
    echo(f"error: {error}", err=True)
    sys.exit(error.exit_code)
