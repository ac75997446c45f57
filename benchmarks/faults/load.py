"""The load on a stage, as the one who put it there sees it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from bisect import bisect_left
from pathlib import Path
from types import TracebackType

from benchmarks.faults.checking_client import Seen
from benchmarks.faults.clients import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]


class Load:
    """A process of clients, from entering to leaving; what they see is collected here."""

    def __init__(self, port: int, users: int, clients: int, requests_per_second: int) -> None:
        numbers = map(str, (port, users, clients, requests_per_second))
        self._command = [sys.executable, "-m", "benchmarks.faults.clients", *numbers]
        self._seen: list[Seen] = []

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

    def since(self, moment: float) -> list[Seen]:
        """Return what was asked from that moment on and has its answer."""
        everything = self._seen[:]
        # What stands before has its answer before, or is that of a client that waited for all its patience.
        start = bisect_left(everything, moment - PATIENCE_SECONDS, key=lambda seen: seen.answered)
        return [seen for seen in everything[start:] if seen.asked >= moment]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._seen.append(Seen(*json.loads(line)))
