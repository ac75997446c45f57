"""Clients that ask without pause, at times set beforehand, in a process of their own.

`python -m benchmarks.faults.clients PORT USERS CLIENTS REQUESTS_PER_SECOND` prints
what each request saw as a line of JSON, until its standard input ends. The time
of an answer counts from when it was due to be asked for: a client that is kept
waiting asks late, and whoever would have come meanwhile waits as well.
"""

from __future__ import annotations

import http.client
import json
import random
import sys
import threading
import time

from benchmarks.faults.checking_client import Asker

PATIENCE_SECONDS = 10


class OneConnection:
    """One connection that is kept open, and opened again once where it breaks."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None

    def get(self, path: str) -> tuple[int, bytes, int]:
        """Return status, body, and how often it had to be asked again."""
        for retries in (0, 1):
            if self._connection is None:
                self._connection = http.client.HTTPConnection(
                    "127.0.0.1", self._port, timeout=PATIENCE_SECONDS
                )
            try:
                self._connection.request("GET", path)
                response = self._connection.getresponse()
                return response.status, response.read(), retries
            except TimeoutError:
                self.close()
                return 0, b"", retries
            except (OSError, http.client.HTTPException):
                self.close()
        return 0, b"", 1

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def main(port: int, users: int, clients: int, requests_per_second: int) -> None:
    """Ask until standard input ends."""
    over, interval_seconds, begin = threading.Event(), clients / requests_per_second, time.monotonic()

    def ask_on(number: int) -> None:
        connection, asker = OneConnection(port), Asker(random.Random(number), users)
        due = begin + number * interval_seconds / clients
        while not over.wait(max(0.0, due - time.monotonic())):
            print(json.dumps(asker.ask(connection, due)) + "\n", end="", flush=True)
            due += interval_seconds
        connection.close()

    threads = [threading.Thread(target=ask_on, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
