"""Proxies in front of Redis and Postgres that run an action at a chosen message.

Messages to both servers are counted in one sequence. The same command sends
nearly the same messages every time, so a run without a fault gives their number,
and any of them can then be chosen by its number.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import TracebackType

import sqlalchemy as sa

from benchmarks.faults.tcp_proxy import TcpProxy, address_of, url_through

REDIS, POSTGRES = "Redis", "Postgres"
KEPT_BYTES = 200

Choose = Callable[[int, str, bytes], bool]
"""(number of a message from 1, REDIS or POSTGRES, its bytes) -> whether the action runs at it."""


class StoreProxies:
    """One proxy in front of Redis, one in front of Postgres.

    Attributes
    ----------
    redis_url, database_url
        The servers, reached through the proxies.
    messages
        Every message so far: its server and its first bytes.
    triggered
        Whether the chosen message has been reached.
    """

    def __init__(self, redis_url: str, database_url: str) -> None:
        cache, database = sa.make_url(redis_url), sa.make_url(database_url)
        self._servers = {REDIS: address_of(cache, 6379), POSTGRES: address_of(database, 5432)}
        self._lock = threading.Lock()
        self.arm(lambda *_: False, lambda: None)
        self._proxies = {
            store: TcpProxy(server, partial(self._forward, store)) for store, server in self._servers.items()
        }
        self.redis_url = url_through(self._proxies[REDIS], cache, {})
        self.database_url = url_through(self._proxies[POSTGRES], database, {"sslmode": "disable"})

    def arm(self, choose: Choose, action: Callable[[], None], share: float = 1.0) -> None:
        """Count from 1 again; forward that share of the chosen message, then run the action."""
        self.messages: list[tuple[str, bytes]] = []
        self.triggered = False
        self._choose, self._action, self._share = choose, action, share

    def cut(self, store: str) -> None:
        """Cut every connection to a server; new ones are accepted."""
        self._proxies[store].cut()

    @contextmanager
    def stopped(self, store: str) -> Iterator[None]:
        """Cut every connection to a server, and refuse new ones, for the time of the block."""
        with socket.create_server(("127.0.0.1", 0)) as unused:
            nowhere = unused.getsockname()
        self._proxies[store].switch_to(nowhere)
        try:
            yield
        finally:
            self._proxies[store].switch_to(self._servers[store])

    def wait_until_closed(self) -> None:
        """Wait until the servers have read everything from a command that has ended."""
        for proxy in self._proxies.values():
            proxy.wait_until_closed()

    def __enter__(self) -> StoreProxies:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            for proxy in self._proxies.values():
                stack.push(proxy)

    def _forward(self, store: str, message: bytes, server: socket.socket) -> bool:
        """Forward a message; return whether all of it was."""
        with self._lock:
            self.messages.append((store, message[:KEPT_BYTES]))
            if self.triggered or not self._choose(len(self.messages), store, message):
                server.sendall(message)
                return True
            self.triggered = True
            server.sendall(message[: int(len(message) * self._share)])
            self._action()
            return self._share == 1
