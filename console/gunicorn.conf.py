# ruff: noqa: N999 - gunicorn looks for this name
"""Gunicorn configuration of the console: one worker, so that the list of running jobs is one."""

from __future__ import annotations

from typing import Any

from console.context import EXTENSION
from contract.settings import Settings
from scheduler.service import STOP_SECONDS

_console = Settings.from_environment().console
bind = (
    f"[{_console.console_host}]:{_console.console_port}"
    if ":" in _console.console_host
    else f"{_console.console_host}:{_console.console_port}"
)
workers = 1
worker_class = "gthread"
threads = 8
proc_name = "overnight-console"
# A stopping console first ends its jobs.
graceful_timeout = STOP_SECONDS + 15


def worker_exit(_server: Any, worker: Any) -> None:
    """End the jobs of a worker that stops."""
    app = worker.app.callable
    if app is not None:
        app.extensions[EXTENSION].jobs.close()
