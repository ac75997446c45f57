"""Processes that outlive the one that started them: found again, stopped in order."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from contract.errors import EXIT_USAGE, OvernightError

POLL_SECONDS = 0.05
OWN_PORTS = range(10_000, 32_768)
"""Below those that Linux gives to outgoing connections."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DemoError(OvernightError):
    """Raised when the demo's servers, its network or its answers are not as they should be."""


class DemoUsageError(OvernightError):
    """Raised when the demo is asked for something that cannot work here, like a taken port."""

    exit_code = EXIT_USAGE


def running(pid_file: Path, mark: str) -> psutil.Process | None:
    """Return the live process that the file names on its first line.

    After a reboot the number may belong to another program, so it counts only
    if `mark` is one of the arguments on its command line.
    """
    try:
        process = psutil.Process(int(pid_file.read_text().partition("\n")[0]))
        alive = process.status() != psutil.STATUS_ZOMBIE and mark in process.cmdline()
    except (OSError, ValueError, psutil.Error):
        return None
    return process if alive else None


def stop(process: psutil.Process, sign: signal.Signals, seconds: float) -> None:
    """Send the signal and wait until the process has ended; kill it after `seconds`."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(sign)
        deadline = time.monotonic() + seconds
        while not _ended(process):
            if time.monotonic() > deadline:
                process.kill()
                deadline = float("inf")
            time.sleep(POLL_SECONDS)


def _ended(process: psutil.Process) -> bool:
    """True for a zombie too: in a container nobody may be there to reap it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def free_port() -> int:
    """Return a TCP port that nobody listens on now.

    Not one that the system would hand out itself: until we listen on it, it
    might give the same to somebody's outgoing connection.
    """
    for port in random.sample(OWN_PORTS, len(OWN_PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise DemoError(f"no port between {OWN_PORTS[0]} and {OWN_PORTS[-1]} is free")


def last_lines(log: Path, lines: int = 5) -> str:
    """Return the end of a log as one line, for an error message."""
    try:
        found = log.read_text(errors="replace").strip().splitlines()[-lines:]
    except OSError:
        return f"{log} cannot be read"
    return " | ".join(line.strip() for line in found) or f"{log} is empty"


@contextmanager
def lock(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a lock that the kernel drops when this process ends, however it ends.

    The file names the holder's process id on its first line.

    Raises
    ------
    BlockingIOError
        If another process holds it and `wait` is false.
    """
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def holder(path: Path) -> psutil.Process | None:
    """Return the process that holds the lock, if one does."""
    try:
        with path.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return psutil.Process(int(file.readline()))
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None
    return None


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold signals back until the block is done: nothing half started that nobody would find."""
    received: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        os.kill(os.getpid(), received[0])
