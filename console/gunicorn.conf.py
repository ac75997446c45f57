# ruff: noqa: N999 - gunicorn looks for this name
"""Gunicorn configuration of the console: one worker, so that the list of running jobs is one."""

from __future__ import annotations

from contract.settings import Settings

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
