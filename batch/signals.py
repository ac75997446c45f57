"""Ends a run on SIGINT or SIGTERM as any failed run ends, even while Postgres keeps it waiting.

Python runs a signal's handler only once the call into C that it came upon is
over, and a query may be long, or wait for another's lock. So a thread is told
of the signal at once, and where the handler has not run a moment later it
cancels what Postgres is doing for this process.
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
PATIENCE_SECONDS = 0.5


class InterruptedRunError(BaseException):
    """Raised in place of a signal; like KeyboardInterrupt no Exception, or logging would swallow it."""


@contextmanager
def signals_raise(engine: sa.Engine) -> Iterator[None]:
    """Raise `InterruptedRunError` on the first signal, and ignore further ones: cleaning up goes on.

    Parameters
    ----------
    engine
        Cancels what its connections, opened from now on, are doing.
    """
    handled = threading.Event()
    opened: WeakSet[Any] = WeakSet()

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        handled.set()
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise InterruptedRunError(f"stopped by {signal.Signals(number).name}; what was live is live still")

    def remember(driver: Any, record: Any) -> None:
        opened.add(driver)

    sa.event.listen(engine, "connect", remember)
    woken, waking = socket.socketpair()
    waking.setblocking(False)
    watch = threading.Thread(target=_cancel_when_woken, args=(woken, handled, opened), daemon=True)
    watch.start()
    before = {each: signal.signal(each, interrupt) for each in SIGNALS}
    descriptor = signal.set_wakeup_fd(waking.fileno())
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for each, handler in before.items():
            signal.signal(each, handler)
        handled.set()
        waking.close()
        watch.join()
        woken.close()
        sa.event.remove(engine, "connect", remember)


def _cancel_when_woken(woken: socket.socket, handled: threading.Event, opened: WeakSet[Any]) -> None:
    """Wait for a signal's byte, or for the other end to be closed; cancel until the handler has run."""
    if woken.recv(1):
        while not handled.wait(PATIENCE_SECONDS):
            for connection in list(opened):
                with suppress(psycopg2.Error):
                    connection.cancel()
