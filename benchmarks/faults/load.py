"""The process of clients, and the requests and answers that it reports."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from bisect import bisect_left
from pathlib import Path
from types import TracebackType

from benchmarks.faults.checking_client import Exchange
from benchmarks.faults.clients import TIMEOUT_SECONDS

ROOT = Path(__file__).parents[2]


class Load:
    """Runs clients in a process while the block is entered, and collects their exchanges."""

    def __init__(self, port: int, users: int, clients: int, requests_per_second: int) -> None:
        numbers = map(str, (port, users, clients, requests_per_second))
        self._command = [sys.executable, "-m", "benchmarks.faults.clients", *numbers]
        self._exchanges: list[Exchange] = []

    def __enter__(self) -> Load:
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._reader.join()
        self._process.__exit__(kind, error, trace)

    def since(self, moment: float) -> list[Exchange]:
        """Return the answered exchanges whose request was sent at or after that moment."""
        exchanges = self._exchanges[:]
        # They are in order of their answers, which come at most TIMEOUT_SECONDS after the request.
        start = bisect_left(exchanges, moment - TIMEOUT_SECONDS, key=lambda each: each.answered_at)
        return [each for each in exchanges[start:] if each.sent_at >= moment]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._exchanges.append(Exchange(*json.loads(line)))
