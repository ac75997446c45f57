"""Long work as child processes, and signals that end it in order."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
import psutil

from contract.errors import OvernightError
from demo.processes import SIGNALS, stop

ROOT = Path(__file__).resolve().parents[1]
STOP_SECONDS = 30


class Stopped(BaseException):
    """Raised in the main thread by Ctrl-C, SIGTERM or a closed terminal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class StageError(OvernightError):
    """Raised when a child ended badly; it has told why, and its exit code becomes ours."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn the first signal into `Stopped`, and have further ones ignored while we clean up."""

    def on_signal(number: int, frame: FrameType | None) -> NoReturn:
        ignore_signals()
        raise Stopped(number)

    # SIGHUP stays ignored under nohup.
    wanted = [s for s in SIGNALS if s is not signal.SIGHUP or signal.getsignal(s) is not signal.SIG_IGN]
    before = {number: signal.signal(number, on_signal) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Let nothing interrupt what follows."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def timed(title: str) -> Iterator[None]:
    """Print what begins, and how long it took."""
    click.echo(f"==> {title}")
    begun = time.monotonic()
    yield
    click.echo(f"    {time.monotonic() - begun:.1f} s")


def run_stage(module: str, arguments: list[str], environment: dict[str, str]) -> None:
    """Run `python -m module arguments` to its end, away from the terminal's Ctrl-C.

    Raises
    ------
    StageError
        If it ends with another exit code than 0.
    Stopped
        After a signal to us, once the child has been told and has ended.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        code = child.wait()
    except BaseException:
        stop(psutil.Process(child.pid), signal.SIGTERM, STOP_SECONDS)
        child.wait()
        raise
    if code != 0:
        shown = code if code > 0 else 128 - code
        raise StageError(f"python -m {' '.join([module, *arguments])} ended with exit code {shown}", shown)
