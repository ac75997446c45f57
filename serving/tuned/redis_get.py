"""A GET without the overhead of redis-py's client.

Measured gain: with redis-py's pool a request takes 1.24 times the processor time
(docs/serving.md).

For each command, redis-py's client takes a connection from its pool, checks
whether Redis has closed it, wraps the command in retries and measurements, and
returns the connection. That costs several times as much as sending a GET and
reading its reply.

The kernel times the wait (SO_RCVTIMEO), not Python: a Python socket with a
timeout polls before each send and receive, and each poll releases the GIL to
another thread.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

from redis import ConnectionPool, Redis
from redis.exceptions import ConnectionError, TimeoutError


class RedisGet:
    """Keeps connections for GETs only, as many as threads use at the same time.

    They have the client's options, but a pool of their own: they do not count
    towards a `max_connections` in REDIS_URL.
    """

    def __init__(self, redis: Redis) -> None:
        pool = redis.connection_pool
        connection_class = _timed_by_kernel(pool.connection_class)
        self._pool = ConnectionPool(connection_class=connection_class, **pool.connection_kwargs)
        self._idle: list[Any] = []  # append and pop are atomic

    def get(self, key: str) -> bytes | None:
        """Return the value under `key`; None if there is none.

        A broken connection is opened again, once: Redis closes idle connections,
        and all of them when it restarts. redis-py closes a connection on any
        error other than an error reply, so no late reply is read by another
        request, and it connects by itself.

        Raises
        ------
        RedisError
            As `Redis.get` does.
        """
        connection = self._take()
        try:
            try:
                return _send_get(connection, key)
            except ConnectionError:
                return _send_get(connection, key)
        finally:
            self._idle.append(connection)

    def _take(self) -> Any:
        try:
            connection = self._idle.pop()
            if connection.pid == os.getpid():  # else it is the parent's, from before the fork
                return connection
        except IndexError:
            pass
        return self._pool.get_connection()


def _send_get(connection: Any, key: str) -> bytes | None:
    try:
        connection.send_command("GET", key)
        value: bytes | None = connection.read_response()
    except ConnectionError as error:
        # The kernel's timeout; the connection is not broken, so it is not retried.
        if isinstance(error.__context__, BlockingIOError):
            raise TimeoutError("Redis did not answer in time") from error
        raise
    return value


def _timed_by_kernel(connection_class: type[Any]) -> type[Any]:
    """Return a connection class with kernel timeouts; with TLS, the timeouts stay Python's."""

    class KernelTimed(connection_class):  # type: ignore[misc]
        def _connect(self) -> socket.socket:
            sock: socket.socket = super()._connect()
            if type(sock) is socket.socket and self.socket_timeout:
                seconds, rest = divmod(self.socket_timeout, 1)
                timeout = struct.pack("ll", int(seconds), int(rest * 1_000_000))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
                sock.settimeout(None)
            return sock

    return KernelTimed
