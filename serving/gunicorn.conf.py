# ruff: noqa: N999 - gunicorn looks for this name
"""How gunicorn runs the app: address and number of workers come from the settings."""

from __future__ import annotations

import sys

from gunicorn.workers.base import Worker

from contract.errors import SettingsError
from contract.settings import Settings
from serving.app import EXTENSION

try:
    _settings = Settings.from_environment()
except SettingsError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)

_host = f"[{_settings.host}]" if ":" in _settings.host else _settings.host
bind = f"{_host}:{_settings.port}"
workers = _settings.workers
# Threads keep connections open between requests, and a slow client holds one of them, not the worker.
worker_class = "gthread"
threads = 4
# Loaded before forking, so that a bad setting ends gunicorn instead of its workers one by one.
preload_app = True
graceful_timeout = 10
limit_request_line = 8190
control_socket_disable = True


def post_worker_init(worker: Worker) -> None:
    """Load the state and start the refresh in the worker, which shares neither with its siblings."""
    worker.wsgi.extensions[EXTENSION].live.start()
