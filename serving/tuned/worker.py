"""Gunicorn's threaded worker, which neither slow nor idle clients can occupy.

Fault that only it survives: 32 clients with half a request each stop two workers of
gunicorn's own gthread with 16 threads (docs/serving.md). It costs no measurable time.

Gunicorn's own worker gives every connection a thread: for some seconds while
the client sends nothing, without limit while it has sent half a request. As
many such clients as there are threads stop the worker. Here a connection gets a
thread when its first bytes have arrived, and is closed when its request takes
too long. Idle connections are kept for a long time (OVERNIGHT_KEEP_ALIVE_SECONDS),
since a proxy may use one again until it has closed it; when a worker has its
maximum, the one that has been idle longest is closed for a new one. Requests
that gunicorn itself refuses are answered with a problem, as the app does.
"""

from __future__ import annotations

import selectors
import socket
import time
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any

from gunicorn.http import message
from gunicorn.workers.gthread import TConn, ThreadWorker

from serving.problems import MEDIA_TYPE, encode_problem

MAX_REQUEST_SECONDS = 5.0
"""Time limit for the head of a request to arrive, and for a thread to read and answer it."""

MAX_PEEK_BYTES = 1 << 16

MAX_REQUEST_LINE_BYTES = 16_000
"""Longer than gunicorn's maximum, so that a parameter of 10 kB gets a problem that names it."""

message.MAX_REQUEST_LINE = MAX_REQUEST_LINE_BYTES  # no setting of gunicorn raises its maximum


class Worker(ThreadWorker):  # type: ignore[misc]
    """A worker whose threads slow clients cannot occupy."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_keepalived = self.worker_connections  # gunicorn keeps `threads` free: `accept` makes room
        # When each connection was queued or started, oldest first. A thread writes only its own connection's.
        self._started: dict[TConn, float] = {}

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection; keep one place free, as gunicorn does not accept without."""
        super().accept(listener)
        idle = [connections[0] for connections in (self.keepalived_conns, self.pending_conns) if connections]
        if idle and self.nr_conns >= self.worker_connections:
            min(idle, key=lambda conn: conn.timeout).timeout = 0.0
            self.murder_keepalived()
            self.murder_pending()

    def _cap_keepalive(self, deadline: float) -> None:
        """When the worker stops, close connections without a request too, not only reused ones."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def enqueue_req(self, conn: TConn) -> None:
        """Queue the connection for a thread; a new one first waits, without a thread, for its first bytes."""
        if not conn.initialized and not conn.data_ready:
            conn.sock.setblocking(False)
            conn.set_timeout()
            self.pending_conns.append(conn)
            self.poller.register(
                conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn)
            )
            return
        self._started[conn] = time.monotonic()
        super().enqueue_req(conn)

    def handle(self, conn: TConn) -> Any:
        """Read and answer the request, in a thread; restart its time, as it may have been queued."""
        self._started.pop(conn, None)
        self._started[conn] = time.monotonic()
        return super().handle(conn)

    def finish_request(self, conn: TConn, fs: Future[Any]) -> None:
        """Take the connection back from its thread."""
        self._started.pop(conn, None)
        super().finish_request(conn, fs)

    def murder_pending(self) -> None:
        """Close connections over the time limit; gunicorn calls this at least about once a second.

        A thread that waits for the client wakes up and sees the connection
        closed. A complete request that only waits for a thread is kept.
        """
        super().murder_pending()
        latest = time.monotonic() - MAX_REQUEST_SECONDS
        for conn, started in list(self._started.items()):
            if started > latest:
                break
            # A thread that takes it meanwhile changes its time before it reads.
            if not _has_unread_request(conn.sock) and self._started.get(conn) == started:
                del self._started[conn]
                with suppress(OSError):
                    conn.sock.shutdown(socket.SHUT_RDWR)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer what gunicorn refuses, such as a header too long, with a problem instead of HTML."""
        recorder = _StatusRecorder()
        super().handle_error(req, recorder, addr, exc)
        status = HTTPStatus(recorder.status)
        detail = status.phrase if status >= HTTPStatus.INTERNAL_SERVER_ERROR else str(exc)
        body = encode_problem(status, status.phrase, detail).encode()
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\nCache-Control: no-store\r\n"
        head += f"Content-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
        with suppress(OSError):
            client.sendall(head.encode() + body)


def _has_unread_request(sock: socket.socket) -> bool:
    """Return whether the socket has the whole head of a request that no thread has read."""
    try:
        return b"\r\n\r\n" in sock.recv(MAX_PEEK_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return False


class _StatusRecorder:
    """Replaces the client's socket while gunicorn writes its error page, and records the status."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR.value

    def gettimeout(self) -> float:
        return 0.0

    def sendall(self, page: bytes) -> None:
        self.status = int(page.split(maxsplit=2)[1])
