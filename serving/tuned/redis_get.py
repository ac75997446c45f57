"""Reads without the overhead of redis-py's client, over connections that are opened off the request path.

Measured gain: with redis-py's pool a request takes 1.24 times the processor time
(docs/serving.md).

For each command, redis-py's client takes a connection from its pool, checks
whether Redis has closed it, wraps the command in retries and measurements, and
returns the connection. That costs several times as much as sending a GET and
reading its reply.

The kernel times the wait (SO_RCVTIMEO), not Python: a Python socket with a
timeout polls before each send and receive, and each poll releases the GIL to
another thread.

A request never opens a connection: with TLS, or a server far away, that takes
longer than a request may wait. Threads of their own do, when a worker starts,
after Redis closed connections, and when all are in use.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from redis import Redis
from redis.exceptions import ConnectionError, TimeoutError

from contract.ids import Id

log = logging.getLogger(__name__)

MIN_CONNECTIONS = 4
"""How many connections a worker keeps open; under load it opens more, one a thread at most."""

MAX_CONNECTING = 4
"""How many threads open connections at the same time."""


class NotConnectedYetError(TimeoutError):
    """Raised when all connections are in use and opening another takes longer than a request waits."""


class RedisGet:
    """Keeps connections for reads only, as many as threads use at the same time. Thread-safe.

    They have the client's options, but are not of its pool: they do not count
    towards a `max_connections` in REDIS_URL.
    """

    def __init__(self, redis: Redis) -> None:
        options = redis.connection_pool.connection_kwargs
        connection_class: Any = _timed_by_kernel(redis.connection_pool.connection_class)
        self._create = partial(connection_class, **options)
        self._wait_seconds = options.get("socket_timeout")
        self._error: Exception | None = None
        self._forget_connections()

    def get(self, key: str) -> bytes | None:
        """Return the value under `key`; None if there is none.

        Raises
        ------
        RedisError
            As `Redis.get` does.
        NotConnectedYetError
            There is no connection to use yet; Redis may be well.
        """
        value: bytes | None = self._execute("GET", key)
        return value

    def hmget(self, name: str, fields: Sequence[Id]) -> list[bytes | None]:
        """Return the values of fields of a hash, in order; raises as `get` does."""
        values: list[bytes | None] = self._execute("HMGET", name, *fields)
        return values

    def keep_connected(self) -> None:
        """Drop idle connections that Redis has closed, and open new ones up to MIN_CONNECTIONS.

        Called off the request path. An error is logged, once until it works again.
        """
        self._check_process()
        for _ in range(len(self._idle)):
            try:
                connection = self._idle.pop(0)
            except IndexError:
                break
            if _is_broken(connection):
                connection.disconnect()
            self._give_back(connection)
        while self._open < MIN_CONNECTIONS:
            with self._changed:
                self._connecting += 1
            if not self._connect():
                break

    def _execute(self, *command: Any) -> Any:
        """Send a command and return its reply.

        Redis closes idle connections, and all of them when it restarts, so
        after a broken connection the other idle ones are tried, then a new one.
        redis-py closes a connection on any error other than an error reply, so
        no late reply is read by another request.
        """
        self._check_process()
        connection = self._take()
        try:
            return self._send(connection, command)
        except ConnectionError:
            failed_at = time.monotonic()
        while True:
            connection = self._take()
            try:
                return self._send(connection, command)
            except ConnectionError:
                if connection.opened_at > failed_at:
                    raise

    def _send(self, connection: Any, command: Sequence[Any]) -> Any:
        try:
            connection.send_command(*command)
            return connection.read_response()
        except ConnectionError as error:
            # The kernel's timeout; the connection is not broken, so it is not retried.
            if isinstance(error.__context__, BlockingIOError):
                raise TimeoutError("Redis did not answer in time") from error
            raise
        finally:
            self._give_back(connection)

    def _take(self) -> Any:
        """Take an idle connection; if there is none, wait for one as long as for a reply.

        Raises
        ------
        ConnectionError
            A connection could not be opened.
        NotConnectedYetError
            None became idle in time.
        """
        try:
            return self._idle.pop()
        except IndexError:
            pass
        with self._changed:
            failures = self._failures

            def find() -> Any:
                try:
                    return self._idle.pop()
                except IndexError:
                    return self._error if self._failures > failures else None

            if self._connecting < MAX_CONNECTING:
                self._connecting += 1
                threading.Thread(target=self._connect, name="redis connect", daemon=True).start()
            self._waiting += 1
            found = self._changed.wait_for(find, self._wait_seconds)
            self._waiting -= 1
        if found is None:
            raise NotConnectedYetError("no connection to Redis is ready yet")
        if isinstance(found, Exception):
            raise ConnectionError(str(found)) from found
        return found

    def _give_back(self, connection: Any) -> None:
        """Return a connection to the idle ones, unless it is closed."""
        if connection.is_connected:
            self._idle.append(connection)
            if self._waiting:
                with self._changed:
                    self._changed.notify()
        else:
            with self._changed:
                self._open -= 1

    def _connect(self) -> bool:
        """Open a connection that `_connecting` already counts; return whether that succeeded."""
        error: Exception | None = None
        try:
            connection = self._create()
            try:
                connection.connect()
            except ConnectionError:  # what cuts all connections also cuts one that is being opened
                connection.connect()
        except Exception as reason:  # noqa: BLE001 - whoever waits must learn of it
            error = reason
        with self._changed:
            self._connecting -= 1
            if error is None:
                self._open += 1
                self._idle.append(connection)
                self._changed.notify()
            else:
                if self._error is None:
                    log.warning("cannot connect to Redis: %s", error)
                self._failures += 1
                self._changed.notify_all()
            self._error = error
        return error is None

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            self._forget_connections()

    def _forget_connections(self) -> None:
        """Begin without connections, in a new process: those from before a fork are the parent's."""
        self._pid = os.getpid()
        self._idle: list[Any] = []  # append and pop are atomic
        # All below are changed with this lock held.
        self._changed = threading.Condition()
        self._open = 0
        self._connecting = 0
        self._waiting = 0
        self._failures = 0
        self._error = None


def _is_broken(connection: Any) -> bool:
    """Return whether an idle connection is closed, or has something to read that nobody asked for."""
    try:
        return bool(connection.can_read())
    except ConnectionError:
        return True


def _timed_by_kernel(connection_class: type[Any]) -> type[Any]:
    """Return a connection class with kernel timeouts; with TLS, the timeouts stay Python's.

    `opened_at` is the monotonic time at which a connection was ready.
    """

    class KernelTimed(connection_class):  # type: ignore[misc]
        opened_at: float

        def on_connect_check_health(self, check_health: bool = True) -> None:
            super().on_connect_check_health(check_health=check_health)
            self.opened_at = time.monotonic()
            if type(self._sock) is socket.socket and self.socket_timeout:
                seconds, rest = divmod(self.socket_timeout, 1)
                timeout = struct.pack("ll", int(seconds), int(rest * 1_000_000))
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
                self._sock.settimeout(None)

    return KernelTimed
