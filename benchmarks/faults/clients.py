"""Clients that send requests at planned times, in a process of their own.

`python -m benchmarks.faults.clients PORT USERS CLIENTS REQUESTS_PER_SECOND` prints
each request and its answer as a line of JSON, until its standard input ends. The
time of an answer counts from the planned time of its request, so that a slow
answer also counts for the requests that it delays.
"""

from __future__ import annotations

import http.client
import json
import random
import sys
import threading
import time

from benchmarks.faults.checking_client import CheckingClient

TIMEOUT_SECONDS = 10


class KeepAliveConnection:
    """One connection that is kept open, and reopened once if it breaks."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None

    def get(self, path: str) -> tuple[int, bytes, int]:
        """Return status (0 without an answer), body, and number of retries."""
        for retries in (0, 1):
            if self._connection is None:
                self._connection = http.client.HTTPConnection(
                    "127.0.0.1", self._port, timeout=TIMEOUT_SECONDS
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
    """Send requests until standard input ends."""
    stop, interval_seconds, start = threading.Event(), clients / requests_per_second, time.monotonic()

    def send_requests(number: int) -> None:
        connection, client = KeepAliveConnection(port), CheckingClient(random.Random(number), users)
        due_at = start + number * interval_seconds / clients
        while not stop.wait(max(0.0, due_at - time.monotonic())):
            print(json.dumps(client.request(connection, due_at)) + "\n", end="", flush=True)
            due_at += interval_seconds
        connection.close()

    threads = [threading.Thread(target=send_requests, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
