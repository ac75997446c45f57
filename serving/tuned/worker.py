"""Gunicorn's threaded worker, for clients that do not finish and for what is no HTTP.

A worker has few threads, and gunicorn gives one to every connection: for some
seconds while it says nothing, for ever while it has said half a request. A
handful of stuck clients would so stop it. Here a connection gets a thread when
its first bytes are there, and loses it, and is closed, when its request takes
too long. What gunicorn refuses itself it answers as the app does.
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

REQUEST_SECONDS = 5.0
"""How long a thread reads and answers a request, and how long the head of one may take to arrive."""

MOST_PEEKED = 1 << 16

LONGEST_LINE = 16_000
"""Bytes of a request line: a wrong parameter of 10 kB is still told of by its name."""

message.MAX_REQUEST_LINE = LONGEST_LINE  # of gunicorn's own, which no setting can raise


class Worker(ThreadWorker):  # type: ignore[misc]
    """A worker whose threads no client can hold."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The earliest first; each thread writes its own connection's.
        self._begun: dict[TConn, float] = {}

    def enqueue_req(self, conn: TConn) -> None:
        """Give the connection to a thread; let a new one wait for its first bytes without."""
        if not conn.initialized and not conn.data_ready:
            conn.sock.setblocking(False)
            conn.set_timeout()
            self.pending_conns.append(conn)
            self.poller.register(
                conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn)
            )
            return
        self._begun[conn] = time.monotonic()
        super().enqueue_req(conn)

    def handle(self, conn: TConn) -> Any:
        """Read the request and answer it, in a thread; its time begins anew, having waited for one."""
        self._begun.pop(conn, None)
        self._begun[conn] = time.monotonic()
        return super().handle(conn)

    def finish_request(self, conn: TConn, fs: Future[Any]) -> None:
        """Take the connection back from its thread."""
        self._begun.pop(conn, None)
        super().finish_request(conn, fs)

    def murder_pending(self) -> None:
        """Close connections that took too long, about once a second or more often.

        A thread that waits for one of them wakes up, and finds it at its end.
        Who has said all, and waits only for a thread, goes on waiting.
        """
        super().murder_pending()
        latest = time.monotonic() - REQUEST_SECONDS
        for conn, begun in list(self._begun.items()):
            if begun > latest:
                break
            # A thread that takes it meanwhile notes so before it reads.
            if not _waits_with_all_said(conn.sock) and self._begun.get(conn) == begun:
                del self._begun[conn]
                with suppress(OSError):
                    conn.sock.shutdown(socket.SHUT_RDWR)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer what gunicorn refuses, such as a header too long, with a problem in place of a page."""
        refusal = _Refusal()
        super().handle_error(req, refusal, addr, exc)
        status = HTTPStatus(refusal.status)
        detail = status.phrase if status >= HTTPStatus.INTERNAL_SERVER_ERROR else str(exc)
        body = encode_problem(status, status.phrase, detail).encode()
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\nCache-Control: no-store\r\n"
        head += f"Content-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
        with suppress(OSError):
            client.sendall(head.encode() + body)


def _waits_with_all_said(sock: socket.socket) -> bool:
    """Tell whether the head of a request is there that no thread has begun to read."""
    try:
        return b"\r\n\r\n" in sock.recv(MOST_PEEKED, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return False


class _Refusal:
    """Stands for the client's socket while gunicorn writes its page: all that matters is the status."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR.value

    def gettimeout(self) -> float:
        return 0.0

    def sendall(self, page: bytes) -> None:
        self.status = int(page.split(maxsplit=2)[1])
