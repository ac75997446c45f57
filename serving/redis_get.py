"""A GET without what redis-py's client does around each command.

To borrow a connection from its pool, look whether Redis has closed it, wrap
the command in retries and measurements, and give the connection back costs
several times what sending a GET and reading its reply does.

Nor does Python time the wait, but the kernel. A socket with a timeout of
Python's asks `poll` before it sends and before it receives, and every such
call lets another thread of the worker go first.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

from redis import ConnectionPool, Redis
from redis.exceptions import ConnectionError, TimeoutError


class Lookup:
    """Keeps connections for GETs alone, one for each thread that asks at a time.

    They are made as the client's are, in a pool apart: a limit that REDIS_URL
    puts on the client's own is not used up by them.
    """

    def __init__(self, redis: Redis) -> None:
        pool = redis.connection_pool
        made = _timed_by_the_kernel(pool.connection_class)
        self._pool = ConnectionPool(connection_class=made, **pool.connection_kwargs)
        self._idle: list[Any] = []  # taken and given back by single steps that no other thread can split

    def get(self, key: str) -> bytes | None:
        """Return what is stored under `key`, None if nothing is.

        A connection found broken is made anew, once: Redis closes those that
        it does not need, and all when it restarts. redis-py has closed the
        connection whenever an error but that of a reply is raised, so that no
        reply is ever read by a later request; and it connects by itself.

        Raises
        ------
        RedisError
            As `Redis.get` does.
        """
        connection = self._take()
        try:
            try:
                return _ask(connection, key)
            except ConnectionError:
                return _ask(connection, key)
        finally:
            self._idle.append(connection)

    def _take(self) -> Any:
        try:
            connection = self._idle.pop()
            if connection.pid == os.getpid():  # else a parent's, from before the fork
                return connection
        except IndexError:
            pass
        return self._pool.get_connection()


def _ask(connection: Any, key: str) -> bytes | None:
    try:
        connection.send_command("GET", key)
        value: bytes | None = connection.read_response()
    except ConnectionError as error:
        # What the kernel's timeout looks like; nothing is broken, so nothing is tried anew.
        if isinstance(error.__context__, BlockingIOError):
            raise TimeoutError("Redis did not answer in time") from error
        raise
    return value


def _timed_by_the_kernel(connection_class: type[Any]) -> type[Any]:
    """Return connections whose waits the kernel ends; over TLS, Python has to."""

    class Timed(connection_class):  # type: ignore[misc]
        def _connect(self) -> socket.socket:
            sock: socket.socket = super()._connect()
            if type(sock) is socket.socket and self.socket_timeout:
                seconds, rest = divmod(self.socket_timeout, 1)
                at_most = struct.pack("ll", int(seconds), int(rest * 1_000_000))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, at_most)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, at_most)
                sock.settimeout(None)
            return sock

    return Timed
