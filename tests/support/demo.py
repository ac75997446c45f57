"""Run the demo's command line as a user does, and find the processes it leaves."""

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

from demo.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 300


PORTS = ("--port", "--app-port", "--console-port")
"""Options of `up`, one for each app."""


def free_ports() -> tuple[str, ...]:
    """Return options of `up` with a free port for each app."""
    return tuple(part for option in PORTS for part in (option, str(free_port())))


class CommandResult(NamedTuple):
    """Exit code and output of a command."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The last line on stderr."""
        return self.stderr.rstrip("\n").rpartition("\n")[2]


def run_demo(folder: Path, *arguments: str, stdin: str = "", **environment: str) -> CommandResult:
    """Run `python -m demo` to its end, with the folder as its data folder."""
    result = subprocess.run(
        [sys.executable, "-m", "demo", *arguments],
        cwd=ROOT,
        env=_environment(folder) | environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    return CommandResult(result.returncode, result.stdout, result.stderr)


@contextmanager
def start_demo(text: str, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start `python -m demo` and wait until it prints the text; kill it at the end of the block."""
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
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")
    }
    return inherited | {"OVERNIGHT_DEMO_DIR": str(folder)}


def find_processes(folder: Path) -> list[psutil.Process]:
    """Return every live process with the folder on its command line."""
    processes = []
    for process in psutil.process_iter(["cmdline", "status"]):
        arguments = process.info["cmdline"] or []
        has_folder = any(str(folder) in argument for argument in arguments)
        if has_folder and process.info["status"] != psutil.STATUS_ZOMBIE:
            processes.append(process)
    return processes


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when the condition is true; fail after TIMEOUT_SECONDS."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
