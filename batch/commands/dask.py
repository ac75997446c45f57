"""`python -m batch dask-scheduler` and `dask-worker`: the processes of a Dask cluster."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from batch.executors.packages import require_dask
from contract.errors import SettingsError
from contract.settings import Settings

PORT = 8786
"""Dask's own default."""

SCHEDULER_EXAMPLE = """\b
Example:
  python -m batch dask-scheduler --host 0.0.0.0"""

WORKER_EXAMPLE = """\b
Example:
  OVERNIGHT_DASK=tcp://127.0.0.1:8786 python -m batch dask-worker"""


@click.command(epilog=SCHEDULER_EXAMPLE)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0: a free port."
)
@click.pass_obj
def dask_scheduler(settings: Settings, host: str, port: int) -> None:
    """Run the scheduler of the Dask cluster until SIGTERM or Ctrl-C.

    Dask runs whatever code its clients send. So beyond this machine give all processes of the cluster
    OVERNIGHT_DASK_TOKEN or the three settings of TLS, better both. A worker that has not been heard of for
    60 s loses its tasks to others (DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL replaces the 60 s).
    """
    require_dask("dask-scheduler")
    from batch.executors.processes import run_scheduler  # an optional package

    run_scheduler(settings, host, port)


@click.command(epilog=WORKER_EXAMPLE)
@click.option("--host", help="Address to listen on. Default: the one that faces the scheduler.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    help="Port to listen on; 0: a free one.",
)
@click.pass_obj
def dask_worker(settings: Settings, host: str | None, port: int) -> None:
    """Run a worker of the Dask cluster that OVERNIGHT_DASK names, until SIGTERM or Ctrl-C.

    It has OVERNIGHT_THREADS threads, scores in OVERNIGHT_MEMORY_BUDGET_MIB, and writes lists to its own
    REDIS_URL; it never connects to Postgres. If the scheduler is away for OVERNIGHT_DASK_TIMEOUT_SECONDS it
    exits with 1, for a supervisor to start it again.
    """
    require_dask("dask-worker")
    if not settings.dask.scheduler:
        raise SettingsError(
            "OVERNIGHT_DASK is empty: set it to the address of the scheduler, tcp://host:8786"
        )
    from batch.executors.processes import run_worker  # an optional package

    import_module("batch.publishing.list_tasks")  # takes seconds, for which the first task need not wait
    sys.exit(run_worker(settings, host, port))
