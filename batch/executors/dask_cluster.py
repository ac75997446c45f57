"""A connection to a Dask cluster, whose coroutines run in a thread of their own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import uuid
import warnings
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import dask.config
from distributed import Client, Future
from distributed.comm.core import FatalCommClosedError
from distributed.versions import VersionMismatchWarning

from batch.executors.connection import reason_of
from batch.executors.security import configure
from contract.errors import DaskError
from contract.settings import Settings

T = TypeVar("T")

CONNECT_SECONDS = 30
"""How long the scheduler may take to answer at first, unless OVERNIGHT_DASK_TIMEOUT_SECONDS is shorter."""

ANSWER_SECONDS = 60
"""How long a connected scheduler may take to answer."""

POLL_SECONDS = 0.5
CLOSE_SECONDS = 5

CONFIGURATION = {
    "distributed.comm.timeouts.connect": "10s",
    "distributed.admin.large-graph-warning-threshold": "1TiB",  # tasks are large
}
LOGGERS = ("distributed", "tornado", "asyncio")


class LostError(Exception):
    """Raised when a function was not run, or its result or an argument is on no worker any more."""


class Cluster:
    """The scheduler, and through it the workers. Coroutines of this class run in the thread of its loop."""

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.address = settings.dask.scheduler
        self._settings = settings
        self._loop = loop
        self._client: Any = None

    def start(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine, from another thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, coroutine: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        """Run a coroutine from another thread, and wait for it."""
        return self.start(coroutine if seconds is None else asyncio.wait_for(coroutine, seconds)).result()

    @property
    def lost(self) -> bool:
        """Whether the connection to the scheduler ended. Dask would go on to connect, but tasks are lost."""
        return bool(self._client.status != "running")

    def lost_error(self) -> DaskError:
        """Return the error of a lost scheduler."""
        return DaskError(
            f"the Dask scheduler {self.address} was lost while tasks ran; "
            "see its log, and run again when it is up"
        )

    async def connect(self) -> None:
        """Connect to the scheduler.

        Raises
        ------
        DaskError, SettingsError
            It does not answer, or refuses this process.
        """
        security = configure(self._settings)
        # Workers are checked for more than these versions, and refused.
        warnings.filterwarnings("ignore", category=VersionMismatchWarning)
        timeout = min(CONNECT_SECONDS, self._settings.dask.dask_timeout_seconds)
        try:
            self._client = await Client(
                self.address,
                asynchronous=True,
                set_as_default=False,
                security=security,
                timeout=timeout,
                name="overnight",
            )
        except FatalCommClosedError as error:
            raise DaskError(
                f"the Dask scheduler {self.address} refuses this process: {reason_of(error)}"
            ) from None
        except (TimeoutError, OSError) as error:
            raise DaskError(
                f"the Dask scheduler {self.address} does not answer: {reason_of(error)}; "
                "check that it is up, OVERNIGHT_DASK, and that it has the same token and TLS"
            ) from None

    async def close(self) -> None:
        """Close the connection; the scheduler forgets what it has of this process."""
        if self._client is not None:
            with suppress(TimeoutError, OSError):
                await asyncio.wait_for(self._client.close(), CLOSE_SECONDS)

    async def workers(self, wait_seconds: float = 0) -> dict[str, int]:
        """Return address -> threads of the workers, after a while.

        Raises
        ------
        DaskError
            The scheduler is lost, or does not answer.
        """
        await asyncio.sleep(wait_seconds)
        return dict(await self._ask(self._client.scheduler.ncores))

    async def share(self, value: Any, worker: str) -> Future:
        """Send a value to a worker; others get it from there with a task that has the future as argument."""
        key = f"shared-{uuid.uuid4().hex}"
        futures = await self._client.scatter({key: value}, workers=[worker])
        return futures[key]

    async def run(self, worker: str, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function of a module on a worker, and return its result, or raise its error.

        Each result is asked for on its own. Client.gather asks for several at once, and then one from a
        worker that hangs delays others.

        Raises
        ------
        LostError
            It has no result.
        """
        future = self._client.submit(
            function, *arguments, workers=[worker], key=f"{function.__name__}-{uuid.uuid4().hex}"
        )
        try:
            error = await future.exception()
            if error is not None:
                raise error
            if future.status != "finished":
                raise LostError("Dask has cancelled it")
            found = await self._client.scheduler.gather(keys=[future.key])
            if found["status"] != "OK":
                raise LostError("its result is on no worker")
            return found["data"][future.key]  # type: ignore[no-any-return]
        finally:
            future.release()

    async def run_at_once(
        self, workers: Sequence[str], function: Callable[..., Any], *arguments: Any
    ) -> None:
        """Run a short function on workers, even while all their threads are busy; ignore errors."""
        if workers and not self.lost:
            await self._client.run(function, *arguments, workers=list(workers), on_error="ignore")

    async def _ask(self, request: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Ask the scheduler, and notice at once if its connection ends."""
        asking = asyncio.ensure_future(request())
        deadline = self._loop.time() + ANSWER_SECONDS
        try:
            while not asking.done():
                if self.lost:
                    raise self.lost_error()
                if self._loop.time() > deadline:
                    raise DaskError(
                        f"the Dask scheduler {self.address} has not answered for {ANSWER_SECONDS} s; "
                        "check whether it hangs or is overloaded"
                    )
                await asyncio.wait({asking}, timeout=POLL_SECONDS / 2)
            return asking.result()
        except OSError:
            raise self.lost_error() from None
        finally:
            asking.cancel()


@contextmanager
def connect_to_cluster(settings: Settings) -> Iterator[Cluster]:
    """Connect to the cluster of the settings.

    Raises
    ------
    DaskError, SettingsError
        It does not answer, or refuses this process.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="dask", daemon=True)
    cluster = Cluster(settings, loop)
    with dask.config.set(CONFIGURATION), _quiet_loggers():
        thread.start()
        try:
            cluster.call(cluster.connect())
            yield cluster
        finally:
            with suppress(TimeoutError):
                cluster.start(_finish(cluster)).result(2 * CLOSE_SECONDS)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(CLOSE_SECONDS)
            if not thread.is_alive():
                loop.close()


async def _finish(cluster: Cluster) -> None:
    """Close the client, and end all that still runs in the loop."""
    await cluster.close()
    rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in rest:
        task.cancel()
    if rest:
        await asyncio.wait(rest, timeout=CLOSE_SECONDS)
    await asyncio.get_running_loop().shutdown_asyncgens()


@contextmanager
def _quiet_loggers() -> Iterator[None]:
    """Silence Dask's loggers unless the level is DEBUG: what matters of a fault is said by the executor."""
    if logging.getLogger().isEnabledFor(logging.DEBUG):
        yield
        return
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if _is_of_dask(name)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _is_of_dask(name: str) -> bool:
    return name.partition(".")[0] in LOGGERS
