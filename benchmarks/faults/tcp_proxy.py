"""A wire to Redis in a process of its own: `python -m benchmarks.faults.tcp_proxy PORT`.

It passes on what comes, later if told to, to a server that may change. Each
line on its standard input is an order; it repeats the line when it has obeyed.

    delay SECONDS   hold back every message to the server for so long
    to PORT         lead to that server, and break the connections to the one before
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIECE_BYTES = 1 << 16


class Wire:
    """The process, as the one who started it sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.port = int(self._tell())

    def delay(self, seconds: float) -> None:
        """Hold back every message to the server for so long; 0 passes them on at once."""
        self._order(f"delay {seconds}")

    def lead_to(self, port: int) -> None:
        """Lead to another server."""
        self._order(f"to {port}")

    def _order(self, order: str) -> None:
        assert self._process.stdin is not None
        print(order, file=self._process.stdin, flush=True)
        if self._tell() != order:
            raise RuntimeError(f"the wire did not obey: {order}")

    def _tell(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")


@contextmanager
def wire_to(port: int) -> Iterator[Wire]:
    """Run a wire to a server on this machine."""
    command = [sys.executable, "-m", "benchmarks.faults.tcp_proxy", str(port)]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield Wire(process)
        finally:
            process.kill()


class _Exchange:
    """What the process does."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._delay = 0.0
        self._ends: set[asyncio.StreamWriter] = set()

    async def run(self) -> None:
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        loop = asyncio.get_running_loop()
        while order := await loop.run_in_executor(None, sys.stdin.readline):
            name, value = order.split()
            if name == "delay":
                self._delay = float(value)
            else:
                self._port = int(value)
                for end in self._ends:
                    end.transport.abort()
            print(order, end="", flush=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward, out = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:  # as if this port refused
            writer.transport.abort()
            return
        self._ends |= {writer, out}
        await asyncio.gather(self._pump(reader, out, held_back=True), self._pump(onward, writer))
        self._ends -= {writer, out}

    async def _pump(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, held_back: bool = False
    ) -> None:
        with suppress(OSError):
            while piece := await source.read(PIECE_BYTES):
                if held_back and self._delay:
                    await asyncio.sleep(self._delay)
                target.write(piece)
                await target.drain()
        target.close()


if __name__ == "__main__":
    asyncio.run(_Exchange(int(sys.argv[1])).run())
