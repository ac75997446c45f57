"""Processes of `python -m batch` that start in milliseconds: forks of one that has everything imported.

Importing what a night needs takes seconds of processor time, and a test that
stops or kills a run needs a process of its own. So each pytest process starts
one *fork server* (the one of `multiprocessing`) when it first wants such a
process. The server imports `tests.support.everything_imported`, which names all
commands, and waits. For each request it forks; the child takes the arguments,
environment and pipes it is given and runs the package as `python -m batch`
does: same `__main__`, same exit codes, Python's own signal handlers.

How to use it: `tests.support.batch.started_batch` does. `Forked` has of
`subprocess.Popen` what tests use: pid, stdout, stderr, returncode, poll,
wait, communicate, send_signal, kill, `with`. The pid is that of the run itself,
so a test may stop, continue or kill it.

What differs from a process that Python has just started:

- Variables that libraries read when they load (OMP_*, OPENBLAS_*, NUMBA_*,
  LD_LIBRARY_PATH) are those of the server, whatever the test asks for.
- Its parent is the server, not the test: `os.waitpid` does not know it, and its
  limits and umask are those pytest had when the server began. Set limits with
  `resource.prlimit(process.pid, ...)`, or use `started_process`.
- The server imported the code by itself: a monkeypatch of the test does not
  reach the child. Use `run_here` for those; from outside, steer a child by
  signals, locks in Postgres, and what it has printed or written.
- `atexit` is not run (the batch uses none).

Why it is safe: a process may go on with OpenMP, BLAS and numba after a fork
only if it had one thread before. The server therefore imports and runs
nothing, and BLAS is told not to make threads. `tests.support.everything_imported`
checks it. So never warm anything up in the server.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache
from multiprocessing import reduction
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import TracebackType
from typing import IO, Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]

Prepare = Callable[[], None]
"""What a child does before it is `python -m batch`; it must pickle."""

OF_THE_SERVER = {
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",  # as batch/__main__.py has it
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pandas loads pyarrow where there is one
    "PYTHONPATH": str(ROOT),
}


class Forked:
    """A run of `python -m batch`, with what tests use of `subprocess.Popen`.

    Attributes
    ----------
    stdout, stderr
        What it prints, as text.
    returncode
        None until it was seen to have ended; minus the signal that killed it.
    """

    def __init__(
        self, arguments: tuple[str, ...], environment: dict[str, str], prepare: Prepare | None = None
    ) -> None:
        out, errors = os.pipe(), os.pipe()
        self.stdout: IO[str] = os.fdopen(out[0])
        self.stderr: IO[str] = os.fdopen(errors[0])
        ends = _Ends(out[1], errors[1])
        self._process = _server().Process(target=_run, args=(arguments, environment, ends, prepare))
        try:
            self._process.start()
        finally:
            os.close(out[1])
            os.close(errors[1])
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """How it ended, None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return how it ended, None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; raise `subprocess.TimeoutExpired` if that takes longer."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("python -m batch", timeout or 0.0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait until it has ended; return what it has printed that nobody read, stdout and stderr."""
        found: dict[str, str] = {}

        def read(name: str, stream: IO[str]) -> None:
            found[name] = stream.read()

        streams = {"out": self.stdout, "errors": self.stderr}
        readers = [threading.Thread(target=read, args=each, daemon=True) for each in streams.items()]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return found["out"], found["errors"]

    def send_signal(self, sign: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, sign)

    def kill(self) -> None:
        """Send it SIGKILL, if it still runs."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Forked:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()
        self.stdout.close()
        self.stderr.close()


class _Ends:
    """The ends of two pipes that the child writes to; they travel with the request."""

    def __init__(self, out: int, errors: int) -> None:
        self.ends = (out, errors)

    def __getstate__(self) -> Any:
        return [reduction.DupFd(end) for end in self.ends]

    def __setstate__(self, travelled: Any) -> None:
        out, errors = (end.detach() for end in travelled)
        self.ends = (out, errors)


@cache
def _server() -> ForkServerContext:
    """Start the server; it ends with this process."""
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.everything_imported"])
    with patch.dict(os.environ, OF_THE_SERVER):
        forkserver.ensure_running()
    return context


def _run(
    arguments: tuple[str, ...], environment: dict[str, str], ends: _Ends, prepare: Prepare | None
) -> None:
    """Be `python -m batch`, in the child; `prepare` is called first."""
    for place, end in enumerate(ends.ends, start=1):
        os.dup2(end, place)
        os.close(end)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = ["batch", *arguments]
    if prepare is not None:
        prepare()
    runpy.run_module("batch", run_name="__main__", alter_sys=True)
