"""A TCP proxy that can delay, cut, switch and intercept connections, in this process or in one of its own.

`python -m benchmarks.faults.tcp_proxy PORT` forwards to a server on this
machine. It prints the port it listens on, then reads one command a line from
standard input and repeats the line when it is done:

    delay SECONDS      hold back every message to the server for so long
    switch_to PORT     forward to that server, and cut all connections
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import sqlalchemy as sa

ROOT = Path(__file__).parents[2]
RECEIVE_BYTES = 1 << 20
CLOSE_SECONDS = 60

Address = tuple[str, int] | str
"""Host and port, or the path of a Unix socket."""

Forward = Callable[[bytes, socket.socket], bool]
"""Sends a client's message to the server; False ends the connection."""


class TcpProxy:
    """Listens on a local port and forwards to a server, with two threads a connection.

    A message is what arrives in one receive.

    Parameters
    ----------
    forward
        Called for each message of a client in place of sending it.

    Attributes
    ----------
    port
        Where the proxy listens.
    delay_seconds
        How long each message to the server is held back.
    received_bytes
        Bytes that the server has sent so far.
    """

    def __init__(self, server: Address, forward: Forward | None = None) -> None:
        self._server = server
        self._forward = forward or self._forward_delayed
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: set[_Connection] = set()
        self.port: int = self._listener.getsockname()[1]
        self.delay_seconds = 0.0
        self.received_bytes = 0
        self._received_lock = threading.Lock()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def switch_to(self, server: Address) -> None:
        """Forward to another server from now on, and cut all connections."""
        self._server = server
        self.cut()

    def cut(self) -> None:
        """Cut all connections; new ones are accepted."""
        for connection in self._connections.copy():
            connection.cut()

    def wait_until_closed(self) -> None:
        """Wait until clients and server have closed all connections and the server has read everything.

        Raises
        ------
        TimeoutError
            A connection is still open after CLOSE_SECONDS.
        """
        for connection in self._connections.copy():
            connection.wait_until_closed()

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(CLOSE_SECONDS)  # then no connection is about to start
        self.cut()
        self.wait_until_closed()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # the listener is closed
                return
            try:
                server = _connect(self._server)
            except OSError:  # the client must see a refused connection
                client.close()
                continue
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(client, server, self)
            self._connections.add(connection)
            connection.start()

    def forward(self, message: bytes, server: socket.socket) -> bool:
        """Forward a client's message; return whether the connection goes on."""
        return self._forward(message, server)

    def count_received(self, size: int) -> None:
        """Note what the server has sent."""
        with self._received_lock:
            self.received_bytes += size

    def remove(self, connection: _Connection) -> None:
        """Forget a connection that has ended."""
        self._connections.discard(connection)

    def _forward_delayed(self, message: bytes, server: socket.socket) -> bool:
        if self.delay_seconds:
            time.sleep(self.delay_seconds)
        server.sendall(message)
        return True


class _Connection:
    """Two sockets and the threads that copy between them; closes both sockets when both threads end."""

    def __init__(self, client: socket.socket, server: socket.socket, proxy: TcpProxy) -> None:
        self._client, self._server, self._proxy = client, server, proxy
        self._upward = threading.Thread(target=self._copy_to_server, daemon=True)
        self._downward = threading.Thread(target=self._copy_to_client, daemon=True)

    def start(self) -> None:
        self._upward.start()
        self._downward.start()

    def cut(self) -> None:
        for end in (self._client, self._server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def wait_until_closed(self) -> None:
        self._downward.join(CLOSE_SECONDS)
        if self._downward.is_alive():
            raise TimeoutError(f"a connection is still open after {CLOSE_SECONDS} s")

    def _copy_to_server(self) -> None:
        with suppress(OSError):
            while message := self._client.recv(RECEIVE_BYTES):
                if not self._proxy.forward(message, self._server):
                    break
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_WR)

    def _copy_to_client(self) -> None:
        with suppress(OSError):
            while answer := self._server.recv(RECEIVE_BYTES):
                self._proxy.count_received(len(answer))
                self._client.sendall(answer)
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_WR)
        self._upward.join()
        self._client.close()
        self._server.close()
        self._proxy.remove(self)


def address_of(url: sa.URL, port: int) -> Address:
    """Return the address of the server in a URL; `port` is what a missing port means."""
    folder, named = url.query.get("host"), url.port or port
    return f"{folder}/.s.PGSQL.{named}" if folder else (str(url.host), named)


def url_through(proxy: TcpProxy, url: sa.URL, options: dict[str, str]) -> str:
    """Return the URL of a server as reached through a proxy, with other options."""
    return url.set(host="127.0.0.1", port=proxy.port, query=options).render_as_string(hide_password=False)


def _connect(address: Address) -> socket.socket:
    """Connect to a TCP or Unix socket.

    Raises
    ------
    OSError
        Nothing listens there.
    """
    if isinstance(address, tuple):
        server = socket.create_connection(address)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return server
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(address)
    except OSError:
        server.close()
        raise
    return server


class ProxyProcess:
    """A proxy in a process of its own, so that it does not slow down the process that started it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.port = int(self._read_line())

    def delay(self, seconds: float) -> None:
        """Hold back every message to the server for so long; 0 forwards at once."""
        self._send(f"delay {seconds}")

    def switch_to(self, port: int) -> None:
        """Forward to another server on this machine, and cut all connections."""
        self._send(f"switch_to {port}")

    def _send(self, command: str) -> None:
        assert self._process.stdin is not None
        print(command, file=self._process.stdin, flush=True)
        if self._read_line() != command:
            raise RuntimeError(f"the proxy did not confirm: {command}")

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")


@contextmanager
def run_proxy(port: int) -> Iterator[ProxyProcess]:
    """Run a proxy process that forwards to a server on this machine."""
    command = [sys.executable, "-m", "benchmarks.faults.tcp_proxy", str(port)]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield ProxyProcess(process)
        finally:
            process.kill()


def main(port: int) -> None:
    """Run a proxy and carry out commands until standard input ends."""
    proxy = TcpProxy(("127.0.0.1", port))
    print(proxy.port, flush=True)
    for line in sys.stdin:
        name, value = line.split()
        if name == "delay":
            proxy.delay_seconds = float(value)
        else:
            proxy.switch_to(("127.0.0.1", int(value)))
        print(line, end="", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
