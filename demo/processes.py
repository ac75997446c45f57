"""Processes: find and stop daemons by pid file, run modules as children, file locks, signals."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

import psutil

from batch.formatting import echo
from contract.errors import EXIT_USAGE, OvernightError

ROOT = Path(__file__).resolve().parents[1]

POLL_SECONDS = 0.05
CHILD_STOP_SECONDS = 30
DAEMON_STOP_SECONDS = 70
"""The slowest of them, the scheduler, first stops a night."""
SERVER_PORTS = range(10_000, 32_768)
"""Below the range from which Linux assigns ports to outgoing connections."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DemoError(OvernightError):
    """Raised when a server does not start, a network is not found, or an answer is wrong."""


class DemoUsageError(OvernightError):
    """Raised when the arguments cannot work on this machine, for example a port in use."""

    exit_code = EXIT_USAGE


class ChildError(OvernightError):
    """Raised when a child process fails; it has printed the reason, and its exit code becomes ours."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Stopped(BaseException):
    """Raised in the main thread on SIGINT, SIGTERM or SIGHUP."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def find_process(pid_file: Path, argument: str) -> psutil.Process | None:
    """Return the live process whose id is on the first line of the file, None if there is none.

    The process must have `argument` on its command line: after a reboot the id
    may belong to another program.
    """
    try:
        process = psutil.Process(int(pid_file.read_text().partition("\n")[0]))
        alive = process.status() != psutil.STATUS_ZOMBIE and argument in process.cmdline()
    except (OSError, ValueError, psutil.Error):
        return None
    return process if alive else None


def stop_process(process: psutil.Process, sign: signal.Signals, seconds: float) -> None:
    """Send the signal and wait until the process has ended; kill it after `seconds`."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(sign)
        deadline = time.monotonic() + seconds
        while not _has_ended(process):
            if time.monotonic() > deadline:
                process.kill()
                deadline = float("inf")
            time.sleep(POLL_SECONDS)


def _has_ended(process: psutil.Process) -> bool:
    """Return whether the process has ended; a zombie has, since a container may have no init to reap it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def run_module(module: str, arguments: list[str], environment: dict[str, str]) -> None:
    """Run `python -m module arguments` to its end, in a session that Ctrl-C does not reach.

    Raises
    ------
    ChildError
        If its exit code is not 0.
    Stopped
        On a signal, after the child was sent SIGTERM and has ended.
    """
    child = None
    try:
        with _delay_signals():  # one that is handled while the child starts would leave it behind
            child = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        code = child.wait()
    except BaseException:
        if child is not None:
            stop_process(psutil.Process(child.pid), signal.SIGTERM, CHILD_STOP_SECONDS)
            child.wait()
        raise
    if code != 0:
        exit_code = code if code > 0 else 128 - code
        command = " ".join(["python -m", module, *arguments])
        raise ChildError(f"{command} ended with exit code {exit_code}", exit_code)


class ChildProcess:
    """A Python program that runs until it is stopped, with its log and its pid file in a folder.

    It has a session of its own, which Ctrl-C does not reach. The path of the pid file is on its command line,
    so that the next process with the same folder finds it and stops it.

    Attributes
    ----------
    log
        File with what it prints.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._pid_file = folder / f"{name}.pid"
        self.name, self.log = name, folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, arguments: list[str], environment: Mapping[str, str]) -> None:
        """Start `python ARGUMENTS`; what it needs until it can be used is not waited for."""
        mark = ["-X", f"pid_file={self._pid_file}"]  # Python ignores -X options that it does not know
        with _delay_signals(), open_private(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *mark, *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            self._pid_file.write_text(f"{self._process.pid}\n")

    def is_running(self) -> bool:
        """Return whether it was started here and has not ended."""
        return self._process is not None and self._process.poll() is None

    def read_environment(self) -> dict[str, str] | None:
        """Return the variables with which it was started, by whatever process; None if it does not run."""
        process = self._find()
        with suppress(psutil.Error):
            return None if process is None else process.environ()
        return None

    def request_stop(self) -> None:
        """Send it SIGTERM if it runs, without waiting."""
        process = self._find()
        if process is not None:
            with suppress(psutil.NoSuchProcess):
                process.terminate()

    def stop(self) -> bool:
        """Stop it, also one that a killed parent left behind; return whether it ran."""
        process = self._find()
        if process is not None:
            stop_process(process, signal.SIGTERM, DAEMON_STOP_SECONDS)
        if self._process is not None:
            self._process.wait()
        self._pid_file.unlink(missing_ok=True)
        return process is not None

    def _find(self) -> psutil.Process | None:
        if self._process is not None and self.is_running():  # its command line is empty for an instant
            return psutil.Process(self._process.pid)
        return find_process(self._pid_file, f"pid_file={self._pid_file}")


@contextmanager
def print_duration(title: str) -> Iterator[None]:
    """Print the title of a step before it, and the seconds it took after it."""
    echo(f"==> {title}")
    started = time.monotonic()
    yield
    echo(f"    {time.monotonic() - started:.1f} s")


def free_port(before: str | None = None) -> int:
    """Return a TCP port of 127.0.0.1 on which nothing listens now.

    It is in SERVER_PORTS: the system may assign any other port to an outgoing
    connection before a server listens on it. As long as this process lives, no
    other one gets the port from this function, such as another run of the tests.

    Parameters
    ----------
    before
        The port that the server had before, if any: it is kept while it is free, so that what is
        connected to it finds the server again.
    """
    ports = random.sample(SERVER_PORTS, len(SERVER_PORTS))
    for port in [int(before), *ports] if before and before.isdigit() else ports:
        with socket.socket() as probe, suppress(OSError):
            # As servers do: connections that a killed server left behind do not keep its port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            if port not in _reserved:
                _reserve(port)
            elif str(port) != before:
                continue
            return port
    raise DemoError(f"no port between {SERVER_PORTS[0]} and {SERVER_PORTS[-1]} is free")


_reserved: dict[int, socket.socket] = {}


def _reserve(port: int) -> None:
    """Hold a socket whose name stands for the port; it ends with the process. Linux only.

    Raises
    ------
    OSError
        Another process holds it.
    """
    if not sys.platform.startswith("linux"):
        return
    holder = socket.socket(socket.AF_UNIX)
    try:
        holder.bind(f"\0overnight-port-{port}")  # an abstract name: no file is left behind
    except OSError:
        holder.close()
        raise
    _reserved[port] = holder


def open_private(path: Path, mode: str) -> IO[bytes]:
    """Open a log to write or to append, which nobody else may read; `mode` is `wb` or `ab`."""
    file = path.open(mode)
    os.fchmod(file.fileno(), 0o600)
    return file


def read_last_lines(log: Path, lines: int = 5) -> str:
    """Return the last lines of a log joined into one, for an error message."""
    try:
        last = log.read_text(errors="replace").strip().splitlines()[-lines:]
    except OSError:
        return f"{log} cannot be read"
    return " | ".join(line.strip() for line in last) or f"{log} is empty"


@contextmanager
def hold_lock(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a file lock; the kernel releases it when this process ends, however it ends.

    The holder's process id is on the first line of the file.

    Raises
    ------
    BlockingIOError
        If another process holds the lock and `wait` is false.
    """
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def find_lock_holder(path: Path) -> psutil.Process | None:
    """Return the process that holds the lock, None if there is none."""
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
def defer_signals() -> Iterator[None]:
    """Deliver signals at the end of the block, so that no server is left half started."""
    received: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(number)

    handlers = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received:
        os.kill(os.getpid(), received[0])


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Raise `Stopped` on the first signal and ignore further ones, so that cleaning up completes."""

    def on_signal(number: int, frame: FrameType | None) -> NoReturn:
        ignore_signals()
        raise Stopped(number)

    # nohup ignores SIGHUP; keep that.
    caught = [s for s in SIGNALS if s is not signal.SIGHUP or signal.getsignal(s) is not signal.SIG_IGN]
    handlers = {number: signal.signal(number, on_signal) for number in caught}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _delay_signals() -> Iterator[None]:
    """Handle the signals that arrive during the block at its end; those that are ignored stay ignored."""
    received: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        received.append(number)

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    caught = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in caught:
        signal.signal(number, keep)
    try:
        yield
    finally:
        for number, handler in caught.items():
            signal.signal(number, handler)
        for caught_number in received:
            signal.raise_signal(caught_number)


def ignore_signals() -> None:
    """Ignore all further signals."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
