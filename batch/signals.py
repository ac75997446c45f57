"""Stop a run cleanly on SIGINT or SIGTERM, even while it waits for Postgres.

Python runs a signal handler only after the C call in progress returns, and a
query may take long or wait for a lock. So a thread is woken by the signal at
once; if the handler has not run after CANCEL_AFTER_SECONDS, the thread cancels
the queries of this process until it has.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn
from weakref import WeakSet

import psycopg2
import sqlalchemy as sa

SIGNALS = (signal.SIGTERM, signal.SIGINT)
CANCEL_AFTER_SECONDS = 0.5

STOPPED = "stopped by "
"""How the reason of a run begins that was stopped by a signal."""


class InterruptedRunError(BaseException):
    """Raised on a signal; not an Exception, like KeyboardInterrupt, because logging would swallow it."""


@contextmanager
def signals_raise(engine: sa.Engine) -> Iterator[None]:
    """Raise `InterruptedRunError` on the first signal; ignore later ones, so that cleaning up finishes.

    Parameters
    ----------
    engine
        Queries on connections that it opens from now on are cancelled.
    """
    handled = threading.Event()
    opened: WeakSet[Any] = WeakSet()

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        handled.set()
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise InterruptedRunError(f"{STOPPED}{signal.Signals(number).name}; the live run is unchanged")

    def remember(driver: Any, record: Any) -> None:
        opened.add(driver)

    sa.event.listen(engine, "connect", remember)
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    canceller = threading.Thread(target=_cancel_queries, args=(receiver, handled, opened), daemon=True)
    canceller.start()
    previous_handlers = {each: signal.signal(each, interrupt) for each in SIGNALS}
    previous_fd = signal.set_wakeup_fd(sender.fileno())
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous_fd)
        for each, handler in previous_handlers.items():
            signal.signal(each, handler)
        handled.set()
        sender.close()
        canceller.join()
        receiver.close()
        sa.event.remove(engine, "connect", remember)


def _cancel_queries(receiver: socket.socket, handled: threading.Event, opened: WeakSet[Any]) -> None:
    """Wait for a signal's byte or the end of the stream; then cancel queries until the handler has run."""
    if receiver.recv(1):
        while not handled.wait(CANCEL_AFTER_SECONDS):
            for connection in list(opened):
                with suppress(psycopg2.Error):
                    connection.cancel()
