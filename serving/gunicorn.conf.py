# ruff: noqa: N999 - gunicorn looks for this name
"""How gunicorn runs the app: address and number of workers come from the settings."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from gunicorn.workers.base import Worker

from contract.errors import SettingsError
from contract.settings import Settings
from serving.tuned.worker import LONGEST_LINE

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


def _make_metrics_folder() -> None:
    """Make the folder that workers count into; gone when the process that made it ends."""
    folder, maker = tempfile.mkdtemp(prefix="overnight-metrics-"), os.getpid()
    os.environ[METRICS_FOLDER] = folder
    # Workers are forks and leave by the same door.
    atexit.register(lambda: os.getpid() == maker and shutil.rmtree(folder, ignore_errors=True))


class _Logger(Logger):  # type: ignore[misc]
    """Gunicorn's own lines go where all others go, in the same form."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


try:
    _settings = Settings.from_environment()
except SettingsError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)

# Before the app is loaded: prometheus_client chooses where to count when it is imported.
# After a reload (HUP) the folder is there already.
if METRICS_FOLDER not in os.environ:
    _make_metrics_folder()

_host = f"[{_settings.serving.host}]" if ":" in _settings.serving.host else _settings.serving.host
bind = [f"{_host}:{port}" for port in (_settings.serving.port, _settings.serving.metrics_port) if port]
workers = _settings.serving.workers
# Connections stay open between requests. While Redis is slow, but in time, every thread waits
# for it most of the time: four would then answer no more than a hundred requests a second.
worker_class = "serving.tuned.worker.Worker"
threads = 16
# Loaded before forking, so that a bad setting ends gunicorn instead of its workers one by one.
preload_app = True
logger_class = _Logger
control_socket_disable = True

# A request is a short line and a few headers; a worker that hangs is replaced.
limit_request_line = LONGEST_LINE
limit_request_fields = 50
limit_request_field_size = 8190
timeout = 30
graceful_timeout = 10
keepalive = 5


def post_worker_init(worker: Worker) -> None:
    """Load the state and start the refresh in the worker, which shares neither with its siblings."""
    from serving.app import EXTENSION

    live = worker.wsgi.extensions[EXTENSION].live
    live.shared_file = Path(os.environ[METRICS_FOLDER]) / "state.json"
    live.start()


def worker_exit(_server: Arbiter, worker: Worker) -> None:
    """Send the exposures that the worker still holds."""
    from serving.app import EXTENSION

    app = getattr(worker, "wsgi", None)  # none where the worker could not load it
    if app is not None and app.extensions[EXTENSION].exposures is not None:
        app.extensions[EXTENSION].exposures.stop()


def child_exit(_server: Arbiter, worker: Worker) -> None:
    """Forget what a worker that is gone told of itself; what it counted stays counted."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)
