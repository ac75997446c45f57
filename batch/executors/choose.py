"""The executor that the settings ask for."""

from __future__ import annotations

import redis

from batch.executors import Executor
from batch.executors.packages import require_dask
from batch.executors.threads import ThreadExecutor
from contract.settings import Settings


def make_executor(settings: Settings, client: redis.Redis | None = None) -> Executor:
    """Return threads of this process, or the workers of the Dask cluster that OVERNIGHT_DASK names.

    Nothing connects before tasks run.

    Parameters
    ----------
    client
        What tasks in this process write with, if they do; workers have clients of their own.

    Raises
    ------
    OvernightError
        The packages of a Dask cluster are needed and not installed.
    """
    threads = ThreadExecutor(settings.night.threads, settings.night.memory_budget_mib, client)
    if not settings.dask.scheduler:
        return threads
    require_dask("OVERNIGHT_DASK")
    from batch.executors.dask_executor import DaskExecutor  # of an optional package

    return DaskExecutor(settings, threads)
