"""A TLS server that passes plain messages on to a server, in this process or in one of its own.

The embedded Valkey is built without TLS. `python -m benchmarks.faults.tls_terminator PORT PEM`
(a file of a key and its certificates) prints the port it listens on, and runs
until standard input ends. One thread serves all connections, since threads may
not read and write one TLS connection at the same time.
"""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[2]
RECEIVE_BYTES = 1 << 20


class TlsTerminator:
    """Listens on a local port with TLS, in a thread.

    Attributes
    ----------
    port
        Where it listens.
    """

    def __init__(self, server_port: int, context: ssl.SSLContext) -> None:
        self._server_port = server_port
        self._context = context
        self._writers: set[asyncio.StreamWriter] = set()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        self._started.wait()

    def cut(self) -> None:
        """Cut all connections; new ones are accepted."""
        asyncio.run_coroutine_threadsafe(self._abort(), self._loop).result()

    def __enter__(self) -> TlsTerminator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context) as server:
            self.port: int = server.sockets[0].getsockname()[1]
            self._started.set()
            await self._stopped.wait()
            await self._abort()

    async def _abort(self) -> None:
        for writer in self._writers.copy():
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
            ends = {writer, server_writer}
            self._writers |= ends
            with suppress(OSError, asyncio.CancelledError):  # the latter when the loop ends
                await asyncio.gather(_copy(reader, server_writer), _copy(server_reader, writer))
            self._writers -= ends
        writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until an end closes; then close the other."""
    try:
        while message := await reader.read(RECEIVE_BYTES):
            writer.write(message)
            await writer.drain()
    finally:
        writer.close()


@contextmanager
def run_terminator(server_port: int, pem: Path) -> Iterator[int]:
    """Run a terminator process, so that it does not slow down this one; yield its port."""
    command = [sys.executable, "-m", "benchmarks.faults.tls_terminator", str(server_port), str(pem)]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def main(server_port: int, pem: str) -> None:
    """Run a terminator until standard input ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with TlsTerminator(server_port, context) as terminator:
        print(terminator.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
