# ruff: noqa: N999 - gunicorn looks for this name
"""Gunicorn configuration of the network's app: it listens on this machine only."""

from __future__ import annotations

from console.worker import Worker
from contract.gunicorn_log import RootLogger
from demo.network_app.config import Config


class _Worker(Worker):
    """A worker for browsers on this machine: all threads may be taken for seconds, by broken requests."""

    request_seconds = 2.0


bind = f"127.0.0.1:{Config.from_environment().port}"
workers = 1  # limits of registrations and the running refresh are counted in one process
worker_class = _Worker
threads = 32
worker_connections = 500
logger_class = RootLogger
control_socket_disable = True
proc_name = "overnight-network"

limit_request_line = 8190
limit_request_fields = 50
limit_request_field_size = 8190
timeout = 60
keepalive = 30
graceful_timeout = 10
