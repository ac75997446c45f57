"""Gunicorn's threaded worker, whose threads no client occupies that sends or reads slowly.

Gunicorn gives a new connection a thread for seconds while the client sends nothing, and without limit while
it has sent half a request. As many such clients as threads would stop the console. Here a connection gets a
thread when its first bytes have arrived, and a request has a few seconds to arrive.
"""

from __future__ import annotations

import errno
import socket
import time
from contextlib import suppress
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

ANSWER_SECONDS = 10.0
"""How long a client may take to read an answer, or a part of 8 KiB of a file."""


class Worker(ThreadWorker):  # type: ignore[misc]
    """A worker whose threads slow clients cannot occupy.

    Attributes
    ----------
    request_seconds
        How long a request may take to arrive, from its first bytes on.
    """

    request_seconds = 5.0

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection."""
        with suppress(BlockingIOError, ConnectionAbortedError):
            accepted, address = listener.accept()
            client = PatientSocket(fileno=accepted.detach())
            client.request_seconds = self.request_seconds
            self.nr_conns += 1
            self.enqueue_req(_Connection(self.cfg, client, address, listener.getsockname()))

    def _cap_keepalive(self, deadline: float) -> None:
        """When the worker stops, also close connections that have sent nothing."""
        super()._cap_keepalive(deadline)
        for connection in self.pending_conns:
            connection.timeout = min(connection.timeout, deadline)


class PatientSocket(socket.socket):
    """A client's socket with time limits: after them, it reads as one that the client has closed."""

    request_seconds: float

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._deadline = 0.0
        self._ended = False

    def begin_request(self, seconds: float) -> None:
        """Start the time of a request."""
        self._deadline = time.monotonic() + seconds
        self.settimeout(ANSWER_SECONDS)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return bytes of the request; none once its time is over."""
        if self._ended:
            return b""
        self.settimeout(max(self._deadline - time.monotonic(), 0.0))
        try:
            return super().recv(size, flags)
        except (BlockingIOError, TimeoutError):
            self._ended = True
            return b""
        finally:
            self.settimeout(ANSWER_SECONDS)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send a part of an answer.

        Raises
        ------
        BrokenPipeError
            The client does not read it.
        """
        try:
            super().sendall(data, flags)
        except TimeoutError:
            raise BrokenPipeError(errno.EPIPE, "the client does not read the answer") from None


class _Connection(TConn):  # type: ignore[misc]
    """A connection that waits for its first bytes without a thread."""

    sock: PatientSocket

    def wait_for_data(self, timeout: float) -> bool:
        """Return whether bytes are there; if not, the worker waits for them."""
        return bool(super().wait_for_data(0.0))

    def init(self) -> None:
        """Start a request; its thread calls this."""
        self.sock.begin_request(self.sock.request_seconds)
        super().init()

    def close(self, graceful: bool = False) -> None:
        """Close the connection without a wait for the client: the thread that accepts others does it."""
        self.sock.begin_request(0.0)
        super().close(graceful)
