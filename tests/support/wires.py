"""What a command says to Redis and to Postgres, led through here: at a chosen message, something happens.

A message is what arrives in one piece, on either wire; they are counted in
one sequence. The same command says much the same every time, so a rehearsal
tells how many there are, and any moment of it can be chosen by a number.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

import sqlalchemy as sa

REDIS, POSTGRES = "Redis", "Postgres"
PIECE_BYTES = 1 << 20
PATIENCE_SECONDS = 60

Choice = Callable[[int, str, bytes], bool]
"""Tells of a message, by its number, its wire and its bytes, whether it is the one."""


class Wires:
    """Two listening ports, of which each leads to a server.

    Attributes
    ----------
    redis_url, database_url
        The same servers, reached through here.
    heard
        Every message so far: its wire and its first bytes.
    struck
        Whether the chosen message has passed.
    """

    def __init__(self, redis_url: str, database_url: str) -> None:
        cache, database = sa.make_url(redis_url), sa.make_url(database_url)
        folder = database.query.get("host")
        port = database.port or 5432
        self._servers = {
            REDIS: (cache.host, cache.port),
            POSTGRES: f"{folder}/.s.PGSQL.{port}" if folder else (database.host, port),
        }
        self._ports = {wire: socket.create_server(("127.0.0.1", 0)) for wire in self._servers}
        self.redis_url = self._through(REDIS, cache, {})
        self.database_url = self._through(POSTGRES, database, {"sslmode": "disable"})
        self._lock = threading.Lock()
        self._ends: dict[str, list[socket.socket]] = {wire: [] for wire in self._servers}
        self._pumps: list[threading.Thread] = []
        self.expect(lambda *_: False, lambda: None)
        for wire in self._ports:
            threading.Thread(target=self._accept, args=(wire,), daemon=True).start()

    def expect(self, chosen: Choice, deed: Callable[[], None], share: float = 1.0) -> None:
        """Count anew; let that share of the chosen message pass, and do the deed."""
        self.heard: list[tuple[str, bytes]] = []
        self.struck = False
        self._chosen, self._deed, self._share = chosen, deed, share

    def cut(self, wire: str) -> None:
        """Break every connection of a wire; new ones may be made."""
        for end in self._ends[wire]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def settle(self) -> None:
        """Wait until the servers have taken in what a command that has ended said, and let go of it."""
        for pump in self._pumps:
            pump.join(PATIENCE_SECONDS)
            assert not pump.is_alive()
        for ends in self._ends.values():
            for end in ends:
                end.close()
            ends.clear()
        self._pumps.clear()

    def __enter__(self) -> Wires:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for port in self._ports.values():
            with suppress(OSError):
                port.shutdown(socket.SHUT_RDWR)
            port.close()
        for wire in self._ends:
            self.cut(wire)
        self.settle()

    def _through(self, wire: str, url: sa.URL, options: dict[str, str]) -> str:
        port = self._ports[wire].getsockname()[1]
        led = url.set(host="127.0.0.1", port=port, query=options)
        return led.render_as_string(hide_password=False)

    def _accept(self, wire: str) -> None:
        while True:
            try:
                near, _ = self._ports[wire].accept()
            except OSError:  # closed
                return
            server = self._servers[wire]
            far = socket.socket(socket.AF_UNIX if isinstance(server, str) else socket.AF_INET)
            try:
                far.connect(server)
            except OSError:  # as if this port refused
                near.close()
                far.close()
                continue
            with self._lock:
                self._ends[wire] += [near, far]
                for pump in (self._upward, self._downward):
                    self._pumps.append(threading.Thread(target=pump, args=(wire, near, far), daemon=True))
                    self._pumps[-1].start()

    def _upward(self, wire: str, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while message := near.recv(PIECE_BYTES):
                if not self._passed(wire, message, far):
                    break
        with suppress(OSError):
            far.shutdown(socket.SHUT_WR)

    def _downward(self, _: str, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while answer := far.recv(PIECE_BYTES):
                near.sendall(answer)
        with suppress(OSError):
            near.shutdown(socket.SHUT_WR)

    def _passed(self, wire: str, message: bytes, far: socket.socket) -> bool:
        """Pass a message on; tell whether all of it was."""
        with self._lock:
            self.heard.append((wire, message[:200]))
            if self.struck or not self._chosen(len(self.heard), wire, message):
                far.sendall(message)
                return True
            self.struck = True
            far.sendall(message[: int(len(message) * self._share)])
            self._deed()
            return self._share == 1
