"""What the tests of the scheduler share: tiny programs that stand for the night, and patience."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

DEADLINE_SECONDS = 30
SATURDAY_NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)

NOTE = "import sys; open(sys.argv[1], 'a').write('ran\\n')"
"""Program that adds a line to the file it is given."""


def until(condition: Callable[[], object]) -> None:
    """Wait for something that has to happen."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def lines(path: Path) -> list[str]:
    """Return the file's lines, none if it is not there yet."""
    return path.read_text().splitlines() if path.exists() else []


def python(code: str, *arguments: object) -> list[str]:
    """Return the command that runs a program given as text."""
    return [sys.executable, "-c", code, *map(str, arguments)]
