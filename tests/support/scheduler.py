"""Helpers of the scheduler tests: small programs in place of the night, and waiting with a deadline."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

DEADLINE_SECONDS = 30
SATURDAY_NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)

NOTE = "import sys; open(sys.argv[1], 'a').write('ran\\n')"
"""Program that appends a line to the file named by its argument."""


def until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true; fail after DEADLINE_SECONDS."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not true within {DEADLINE_SECONDS} s"
        time.sleep(0.02)


def lines(path: Path) -> list[str]:
    """Return the file's lines; an empty list if it does not exist yet."""
    return path.read_text().splitlines() if path.exists() else []


def python(code: str, *arguments: object) -> list[str]:
    """Return the command that runs Python source code."""
    return [sys.executable, "-c", code, *map(str, arguments)]
