# ruff: noqa: N999 - gunicorn looks for this name
"""Gunicorn configuration; address and number of workers come from the settings."""

from __future__ import annotations

import atexit
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path

from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker

from contract.errors import SettingsError
from contract.gunicorn_log import RootLogger
from contract.settings import Settings
from contract.text import escape_controls
from serving import METRICS_FOLDER
from serving.tuned.worker import MAX_REQUEST_LINE_BYTES


def _create_metrics_folder() -> None:
    """Create the folder of the workers' metrics, which is removed when this process ends."""
    folder, creator = tempfile.mkdtemp(prefix="overnight-metrics-"), os.getpid()
    os.environ[METRICS_FOLDER] = folder
    # Workers are forks and run the same exit handlers.
    atexit.register(lambda: os.getpid() == creator and shutil.rmtree(folder, ignore_errors=True))


MAX_CONNECTIONS, OTHER_FILES = 1000, 200
"""Client connections of a worker, and the other files and connections it may have open."""


def _allow_connections() -> int:
    """Raise the soft limit of open files as far as needed; return how many connections it allows.

    An accept above the limit would end the worker.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = wanted if soft == resource.RLIM_INFINITY else soft
    return min(MAX_CONNECTIONS, max(allowed - OTHER_FILES, 1))


try:
    _settings = Settings.from_environment()
except SettingsError as error:
    print(f"error: {escape_controls(str(error))}", file=sys.stderr)
    sys.exit(error.exit_code)

# Before the app is loaded: prometheus_client reads the variable on import.
# After a reload (HUP) the folder exists already.
if METRICS_FOLDER not in os.environ:
    _create_metrics_folder()

_host = f"[{_settings.serving.host}]" if ":" in _settings.serving.host else _settings.serving.host
bind = [f"{_host}:{port}" for port in (_settings.serving.port, _settings.serving.metrics_port) if port]
workers = _settings.serving.workers
# While Redis is slow but within the timeout, threads mostly wait for it: with Redis 40 ms slow,
# four threads answer at most a hundred requests a second.
worker_class = "serving.tuned.worker.Worker"
threads = 16
# Loaded before forking, so that an invalid setting stops gunicorn, not its workers one by one.
preload_app = True
logger_class = RootLogger
control_socket_disable = True

limit_request_line = MAX_REQUEST_LINE_BYTES
limit_request_fields = 50
limit_request_field_size = 8190
timeout = 30  # a worker that hangs is replaced
graceful_timeout = 10
keepalive = _settings.serving.keep_alive_seconds
worker_connections = _allow_connections()


def post_worker_init(worker: Worker) -> None:
    """Load the state and start the refresh thread in the worker."""
    from serving.app import EXTENSION

    live = worker.wsgi.extensions[EXTENSION].live
    live.shared_file = Path(os.environ[METRICS_FOLDER]) / "state.json"
    live.start()


def worker_exit(_server: Arbiter, worker: Worker) -> None:
    """Send the exposures in the worker's queue."""
    from serving.app import EXTENSION

    app = getattr(worker, "wsgi", None)  # None if the worker could not load it
    if app is not None and app.extensions[EXTENSION].exposures is not None:
        app.extensions[EXTENSION].exposures.stop()


def child_exit(_server: Arbiter, worker: Worker) -> None:
    """Remove the gauges of a worker that ended; its counters are kept."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)
