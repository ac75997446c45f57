"""Reach the scheduler of a Dask cluster, and say in one line why it cannot be reached."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time

from distributed import Security
from distributed.comm import connect
from distributed.comm.core import FatalCommClosedError
from tornado.iostream import StreamClosedError

from contract.errors import DaskError
from contract.settings import Settings
from contract.text import as_clause

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10
RETRY_SECONDS = 1.0

MAX_CLOSED = 3
"""A scheduler that accepts connections and closes them so often in a row demands what we do not show."""

CLOSED = "it closed the connection"
NO_ANSWER = "no answer"


async def reach_scheduler(settings: Settings, security: Security, role: str) -> None:
    """Wait until the scheduler that OVERNIGHT_DASK names answers.

    Parameters
    ----------
    security
        See `batch.executors.security.configure`.
    role
        Dask's name of this process: "client" or "worker".

    Raises
    ------
    DaskError
        It refuses this process, or did not answer within OVERNIGHT_DASK_TIMEOUT_SECONDS.
    """
    address, timeout = settings.dask.scheduler, settings.dask.dask_timeout_seconds
    deadline = time.monotonic() + timeout
    closed, reason, warned = 0, "", False
    while True:
        seconds = max(0.1, min(CONNECT_SECONDS, deadline - time.monotonic()))
        try:
            comm = await connect(address, timeout=seconds, **security.get_connection_args(role))
        except FatalCommClosedError as error:
            raise DaskError(
                f"the Dask scheduler {address} refuses this process: {reason_of(error)}"
            ) from None
        except OSError as error:
            reason = reason_of(error)
            if isinstance(root_of(error), ssl.SSLError):
                raise DaskError(f"the Dask scheduler {address} refuses this process: {reason}") from None
        else:
            await comm.close()
            return
        closed = closed + 1 if reason == CLOSED else 0
        if closed == MAX_CLOSED:
            raise DaskError(
                f"the Dask scheduler {address} closes every connection before it says anything: "
                "check OVERNIGHT_DASK_TOKEN, and whether it wants tls://"
            )
        if time.monotonic() + RETRY_SECONDS > deadline:
            raise DaskError(
                f"the Dask scheduler {address} did not answer in {timeout} s: {reason}; "
                "check that it is up, and OVERNIGHT_DASK"
            )
        if not warned:
            log.warning("the Dask scheduler %s: %s; asking again for %s s", address, reason, timeout)
            warned = True
        await asyncio.sleep(RETRY_SECONDS)


def reason_of(error: BaseException) -> str:
    """Return in a few words what is behind an error of a connection, or of a process that cannot start."""
    last = root_of(error)
    if isinstance(last, StreamClosedError | ConnectionResetError):
        return CLOSED
    if isinstance(last, TimeoutError | asyncio.CancelledError):
        return NO_ANSWER
    text = getattr(last, "strerror", None) or str(last) or type(last).__name__
    return as_clause(str(text))


def root_of(error: BaseException) -> BaseException:
    """Return the first error of the chain that led to this one."""
    while (cause := error.__cause__ or getattr(error, "real_error", None)) is not None:
        error = cause
    return error
