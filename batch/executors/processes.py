"""The processes of a Dask cluster: its scheduler, and a worker that outlives the loss of its scheduler."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine
from typing import Any
from urllib.parse import urlsplit

import dask.config
import distributed
from distributed.comm import get_address_host
from distributed.utils import get_ip

from batch.executors.connection import RETRY_SECONDS, reach_scheduler, reason_of
from batch.executors.security import configure
from batch.redis_client import describe
from contract.addresses import is_loopback
from contract.errors import EXIT_DONE, EXIT_FAILED, DaskError
from contract.settings import TCP, TLS, Settings

log = logging.getLogger(__name__)

DEFAULTS = {
    "distributed": {
        "scheduler": {"worker-ttl": "60s", "http": {"routes": []}},
        "worker": {"http": {"routes": []}, "profile": {"enabled": False}},
    }
}
"""Defaults in place of Dask's; its configuration files and variables (DASK_...) win over them."""

IDLE_SECONDS, LOST_TASK_SECONDS = 1.0, 10.0
"""How long threads without a task take to end, and how long a task of a lost scheduler is waited for."""

STOP_SECONDS = 10
"""How long a process that was told to stop waits for its connections to close."""


class _Scheduler(distributed.Scheduler):  # type: ignore[misc]
    def start_http_server(self, *args: Any, **kwargs: Any) -> None:
        """Serve no HTTP: those pages would ask for no token."""


class _Worker(distributed.Worker):  # type: ignore[misc]
    closed_because = ""

    def start_http_server(self, *args: Any, **kwargs: Any) -> None:
        """Serve no HTTP, as above."""

    async def close(self, *args: Any, **kwargs: Any) -> Any:
        """Remember the reason that is given first; leave tasks in progress, whose results nobody gets."""
        self.closed_because = self.closed_because or str(kwargs.get("reason", ""))
        return await super().close(*args, **{**kwargs, "executor_wait": False})


def run_scheduler(settings: Settings, host: str, port: int) -> None:
    """Run a scheduler until SIGTERM or SIGINT.

    Raises
    ------
    SettingsError, DaskError
        TLS cannot be used, or the address cannot be listened on.
    """
    _prepare()
    asyncio.run(_scheduler(settings, host, port))


def run_worker(settings: Settings, host: str | None, port: int) -> int:
    """Run a worker until SIGTERM or SIGINT, and return the exit code.

    It ends the process itself if a task is in progress then, which nothing can stop.

    Raises
    ------
    SettingsError, DaskError
        TLS cannot be used, the scheduler refuses this process, or was away for too long.
    """
    _prepare()
    with tempfile.TemporaryDirectory(prefix="overnight-dask-") as folder:
        code, worker = asyncio.run(_worker(settings, host, port, folder))
    if worker is not None and _tasks_in_progress(worker):
        log.warning("left a task in progress: another worker runs it again")
        logging.shutdown()
        sys.stderr.flush()
        os._exit(code)
    return code


def _prepare() -> None:
    """Set Dask's defaults; of Dask's loggers let warnings through, unless more is asked for."""
    dask.config.update_defaults(DEFAULTS)
    for name in ("distributed", "distributed.core", "distributed.scheduler", "distributed.worker"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
    for handler in logging.getLogger().handlers:
        handler.addFilter(_shorten)


def _shorten(record: logging.LogRecord) -> bool:
    """Replace the traceback of a lost connection by its reason, as such losses are expected."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, OSError):
        record.msg, record.args = f"{record.getMessage()} {reason_of(error)}", ()
        record.exc_info = None
    return True


async def _scheduler(settings: Settings, host: str, port: int) -> None:
    security = configure(settings)
    protocol = TLS if settings.dask.dask_tls_ca else TCP
    _warn_if_open(settings, host)
    stop = _stop_signals()
    scheduler = _Scheduler(
        host=_bracketed(host), port=port, protocol=protocol, security=security, dashboard=False
    )
    try:
        await scheduler
    except (RuntimeError, OSError) as error:
        reason = reason_of(error)
        raise DaskError(f"the Dask scheduler cannot listen on {host}:{port}: {reason}") from None
    log.info("the Dask scheduler listens on %s; %s", scheduler.address, _describe_security(settings))
    await _first(scheduler.finished(), stop)
    await _within(STOP_SECONDS, scheduler.close(reason="stopped"))
    log.info("%s: the Dask scheduler stopped", stop.result() if stop.done() else "a client's request")


async def _worker(settings: Settings, host: str | None, port: int, folder: str) -> tuple[int, _Worker | None]:
    """Run workers, one after the other, until a signal; return the exit code and the last one."""
    security = configure(settings)
    stop = _stop_signals()
    worker: _Worker | None = None
    while not stop.done():
        reach = await _first(reach_scheduler(settings, security, "worker"), stop)
        if stop.done():
            reach.cancel()
            break
        reach.result()
        if worker is not None and _tasks_in_progress(worker, LOST_TASK_SECONDS):
            log.error("a task of the lost scheduler still runs: this worker must be started anew")
            return EXIT_FAILED, worker
        worker = await _run_one_worker(settings, security, (host, port, folder), stop)
        if not stop.done():
            reason = worker.closed_because or "no reason given"
            log.warning("the Dask scheduler let go of this worker: %s", reason)
            await asyncio.wait({stop}, timeout=RETRY_SECONDS)
    log.info("%s: the Dask worker stopped", stop.result())
    return EXIT_DONE, worker


async def _run_one_worker(
    settings: Settings,
    security: distributed.Security,
    listen: tuple[str | None, int, str],
    stop: asyncio.Future[str],
) -> _Worker:
    """Run a worker until it closes or `stop` is done."""
    host, port, folder = listen
    scheduler = settings.dask.scheduler
    host = host or get_ip(get_address_host(scheduler))
    _warn_if_open(settings, host)
    worker = _Worker(
        scheduler,
        nthreads=settings.night.threads or len(os.sched_getaffinity(0)),
        host=_bracketed(host),
        port=port,
        protocol=urlsplit(scheduler).scheme,
        memory_limit=0,
        security=security,
        local_directory=folder,
        dashboard=False,
        death_timeout=settings.dask.dask_timeout_seconds,
    )
    start = await _first(worker.start(), stop)
    if start.done():
        if (error := start.exception()) is not None:
            reason = reason_of(error)
            raise DaskError(f"the Dask worker cannot start on {host}: {reason}")
        log.info(
            "the Dask worker %s has %s threads and writes to %s; %s",
            worker.address,
            worker.state.nthreads,
            describe(settings),
            _describe_security(settings),
        )
        await _first(worker.finished(), stop)
    start.cancel()
    await _within(STOP_SECONDS, worker.close(reason="stopped"))
    return worker


async def _first(call: Coroutine[Any, Any, Any], stop: asyncio.Future[str]) -> asyncio.Task[Any]:
    """Wait until a call has ended or `stop` is done, and return the call's task."""
    task = asyncio.create_task(call)
    waited: set[asyncio.Future[Any]] = {task, stop}
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    return task


def _stop_signals() -> asyncio.Future[str]:
    """Return what is done on the first SIGTERM or SIGINT, with the signal's name."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[str] = loop.create_future()

    def handle(number: signal.Signals) -> None:
        if not stop.done():
            stop.set_result(number.name)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle, number)
    return stop


async def _within(seconds: float, close: Coroutine[Any, Any, Any]) -> None:
    """Wait for connections to close, and go on without if they do not."""
    try:
        await asyncio.wait_for(close, seconds)
    except TimeoutError:
        log.warning("connections did not close in %s s", seconds)


def _tasks_in_progress(worker: distributed.Worker, seconds: float = IDLE_SECONDS) -> bool:
    """Return whether a thread of a closed worker still runs a task; one without a task ends at once."""
    deadline = time.monotonic() + seconds
    threads = list(worker.executors["default"]._threads)
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return any(thread.is_alive() for thread in threads)


def _warn_if_open(settings: Settings, host: str) -> None:
    if not is_loopback(host) and not settings.dask.dask_token and not settings.dask.dask_tls_ca:
        log.warning(
            "listening on %s without OVERNIGHT_DASK_TOKEN or TLS: whoever reaches it can run code here",
            host,
        )


def _describe_security(settings: Settings) -> str:
    tls = "TLS" if settings.dask.dask_tls_ca else "no TLS"
    return f"{tls}, {'a token' if settings.dask.dask_token else 'no token'}"


def _bracketed(host: str) -> str:
    """Return a host as it stands in an address."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
