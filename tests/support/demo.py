"""What the tests of the demo share: its command line, run as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 300


class Done(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    errors: str

    @property
    def error(self) -> str:
        """The last line on stderr."""
        return self.errors.rstrip("\n").rpartition("\n")[2]


def demo(folder: Path, *arguments: str, entered: str = "", **environment: str) -> Done:
    """Run `python -m demo` to its end, with its data in the folder."""
    done = subprocess.run(
        [sys.executable, "-m", "demo", *arguments],
        cwd=ROOT,
        env=_environment(folder) | environment,
        input=entered,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@contextmanager
def demo_until(text: str, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start `python -m demo` and wait until it prints the text; kill it at the end if it still runs."""
    output = folder.parent / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "demo", *arguments],
            cwd=ROOT,
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    with process:
        try:
            wait_until(lambda: text in output.read_text() or process.poll() is not None)
            assert process.poll() is None, output.read_text()
            yield process
        finally:
            process.kill()


def _environment(folder: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
    return own | {"OVERNIGHT_DEMO_DIR": str(folder)}


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return every live process that names the folder on its command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        arguments = process.info["cmdline"] or []
        named = any(str(folder) in argument for argument in arguments)
        if named and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def wait_until(true: Callable[[], bool]) -> None:
    """Return when it is true; fail when it takes too long."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
