"""Connections to Redis: one TLS context for all of them, and a time limit of its own for opening one."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from functools import lru_cache
from typing import Any, ClassVar

from redis.connection import Connection, SSLConnection, parse_url
from redis.exceptions import ResponseError


@lru_cache(maxsize=8)
def connection_class_of(url: str) -> type[Any]:
    """Return the class of all connections to a URL; with TLS they share one context.

    Raises
    ------
    ValueError
        An option of the URL has a wrong value.
    """
    options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    connection_class = options.get("connection_class", Connection)
    if issubclass(connection_class, SSLConnection):
        connection_class = _with_shared_context(connection_class)
    return _with_setup_timeout(connection_class)


def _with_shared_context(connection_class: type[Any]) -> type[Any]:
    """Return a class whose connections share the TLS context of the first.

    redis-py makes a context for every connection, and reads all certificates of
    the machine for it: 32 ms of processor time.
    """

    class SharedContext(connection_class):  # type: ignore[misc]
        context: ClassVar[ssl.SSLContext | None] = None

        def make_context(self) -> None:
            """Make the context now, without connecting: forked processes inherit it."""
            if SharedContext.context is None and not self._checks_ocsp():
                with socket.socket() as unconnected, super()._wrap_socket_with_ssl(unconnected) as wrapped:
                    SharedContext.context = wrapped.context

        def _wrap_socket_with_ssl(self, sock: socket.socket) -> ssl.SSLSocket:
            sock.settimeout(self.socket_connect_timeout)
            context = SharedContext.context
            if context is None or self._checks_ocsp():
                wrapped: ssl.SSLSocket = super()._wrap_socket_with_ssl(sock)
                SharedContext.context = wrapped.context
                return wrapped
            try:
                return context.wrap_socket(sock, server_hostname=self.host)
            except ssl.SSLError:
                SharedContext.context = None  # certificate files may have been replaced: read them again
                raise

        def _checks_ocsp(self) -> bool:
            return bool(self.ssl_validate_ocsp or self.ssl_validate_ocsp_stapled)

    return SharedContext


def _with_setup_timeout(connection_class: type[Any]) -> type[Any]:
    """Return a class whose connections sign in within `socket_connect_timeout`, not `socket_timeout`.

    They also read the answer to a PING. TLS 1.3 sends session tickets after the
    handshake; until something is read they look like a reply that nobody asked
    for, and redis-py closes such a connection.
    """

    class SetUp(connection_class):  # type: ignore[misc]
        def on_connect_check_health(self, check_health: bool = True) -> None:
            self._sock.settimeout(self.socket_connect_timeout)
            super().on_connect_check_health(check_health=check_health)
            self.send_command("PING", check_health=False)
            with suppress(ResponseError):  # PING may be forbidden; Redis has answered
                self.read_response()
            self._sock.settimeout(self.socket_timeout)

    return SetUp
