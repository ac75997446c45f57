"""Processes of `python -m batch` that start in milliseconds: forks of one with all modules imported.

Importing the modules of a night takes seconds of CPU time, and a test that
stops or kills a run needs a separate process. So each pytest process starts one
*fork server* (that of `multiprocessing`) on first use. The server imports
`tests.support.everything_imported`, which imports all commands, and waits. For
each request it forks; the child gets arguments, environment and pipes, and runs
the package as `python -m batch` does: same `__main__`, same exit codes, Python's
default signal handlers.

Use it through `tests.support.batch.start_batch`. `Forked` has the part of
`subprocess.Popen` that tests use: pid, stdout, stderr, returncode, poll, wait,
communicate, send_signal, kill, `with`. The pid is that of the run itself, so a
test may stop, continue or kill it.

Differences from a new Python process:

- Variables that libraries read at load time (OMP_*, OPENBLAS_*, NUMBA_*,
  LD_LIBRARY_PATH) are those of the server; the test cannot change them.
- Its parent is the server, not the test: `os.waitpid` does not work, and limits
  and umask are those of pytest at the start of the server. Set limits with
  `resource.prlimit(process.pid, ...)`, or use `start_process`.
- A monkeypatch of the test does not affect the child, since the server imported
  the code itself. Use `run_here` for patches; control a child by signals, locks
  in Postgres, and its output.
- `atexit` handlers do not run (the batch has none).

Safety: OpenMP, BLAS and numba work after a fork only if the process had one
thread before it. So the server only imports modules, never runs code, and BLAS
is configured without threads. `tests.support.everything_imported` checks the
number of threads. Do not run any code in the server.
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
"""Called in the child before `python -m batch`; it must be picklable."""

SERVER_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",  # as batch/__main__.py has it
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pandas loads pyarrow if it is installed
    "PYTHONPATH": str(ROOT),
}


class Forked:
    """A process of `python -m batch`, with the part of the interface of `subprocess.Popen` that tests use.

    Attributes
    ----------
    stdout, stderr
        Its output, as text.
    returncode
        Exit code; None while it runs, minus the signal number if it was killed.
    """

    def __init__(
        self, arguments: tuple[str, ...], environment: dict[str, str], prepare: Prepare | None = None
    ) -> None:
        out, errors = os.pipe(), os.pipe()
        self.stdout: IO[str] = os.fdopen(out[0])
        self.stderr: IO[str] = os.fdopen(errors[0])
        ends = _PipeEnds(out[1], errors[1])
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
        """Exit code; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; raise `subprocess.TimeoutExpired` after the timeout."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("python -m batch", timeout or 0.0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; return the unread output, stdout and stderr."""
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
        """Send it a signal if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, sign)

    def kill(self) -> None:
        """Send it SIGKILL if it still runs."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Forked:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()
        self.stdout.close()
        self.stderr.close()


class _PipeEnds:
    """Write ends of the two pipes; pickled as duplicates of the file descriptors."""

    def __init__(self, out: int, errors: int) -> None:
        self.ends = (out, errors)

    def __getstate__(self) -> Any:
        return [reduction.DupFd(end) for end in self.ends]

    def __setstate__(self, duplicates: Any) -> None:
        out, errors = (end.detach() for end in duplicates)
        self.ends = (out, errors)


@cache
def _server() -> ForkServerContext:
    """Start the fork server; it ends with this process."""
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.everything_imported"])
    with patch.dict(os.environ, SERVER_ENVIRONMENT):
        forkserver.ensure_running()
    return context


def _run(
    arguments: tuple[str, ...], environment: dict[str, str], ends: _PipeEnds, prepare: Prepare | None
) -> None:
    """Run `python -m batch` in the child; call `prepare` first."""
    for descriptor, end in enumerate(ends.ends, start=1):
        os.dup2(end, descriptor)
        os.close(end)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = ["batch", *arguments]
    if prepare is not None:
        prepare()
    runpy.run_module("batch", run_name="__main__", alter_sys=True)
