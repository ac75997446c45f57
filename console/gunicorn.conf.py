# ruff: noqa: N999 - gunicorn looks for this name
"""Gunicorn configuration of the console: one worker, so that the list of running jobs is one."""

from __future__ import annotations

import sys
from typing import Any

from console.context import EXTENSION
from console.worker import Worker
from contract.errors import SettingsError
from contract.gunicorn_log import RootLogger
from contract.settings import Settings
from contract.text import escape_controls
from scheduler.service import STOP_SECONDS

try:
    _console = Settings.from_environment().console
except SettingsError as error:
    print(f"error: {escape_controls(str(error))}", file=sys.stderr)
    sys.exit(error.exit_code)

_host = f"[{_console.console_host}]" if ":" in _console.console_host else _console.console_host
bind = f"{_host}:{_console.console_port}"
workers = 1
worker_class = Worker
threads = 32  # pages that wait for a frozen Postgres occupy one each, for seconds
worker_connections = 500  # an accept above the limit of open files, often 1,024, would end the worker
# Loaded before forking, so that an invalid setting stops gunicorn, not its worker.
preload_app = True
logger_class = RootLogger
control_socket_disable = True
proc_name = "overnight-console"

limit_request_line = 8190
limit_request_fields = 50
limit_request_field_size = 8190
timeout = 60  # a worker that hangs is replaced
keepalive = 30
# A stopping console first ends its jobs.
graceful_timeout = STOP_SECONDS + 15


def worker_exit(_server: Any, worker: Any) -> None:
    """End the jobs of a worker that stops."""
    app = worker.app.callable
    if app is not None:
        app.extensions[EXTENSION].jobs.close()
