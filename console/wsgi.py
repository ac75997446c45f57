"""Entry point of gunicorn: `gunicorn -c console/gunicorn.conf.py console.wsgi:app`."""

from __future__ import annotations

import sys

from flask import Flask

from console.app import create_app
from console.stores import limit_replies, open_stores
from contract.errors import SettingsError
from contract.logs import configure_logging
from contract.settings import Settings
from contract.text import escape_controls


def _create_app() -> Flask:
    settings = Settings.from_environment()
    configure_logging(settings)
    limit_replies()
    return create_app(settings, open_stores(settings))


try:
    app = _create_app()
except SettingsError as error:
    print(f"error: {escape_controls(str(error))}", file=sys.stderr)
    sys.exit(error.exit_code)
