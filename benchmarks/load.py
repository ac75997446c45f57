"""Run gunicorn with an app, put load on it with wrk, and measure its workers."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

SCRIPT = Path(__file__).with_name("load.lua")
READY_SECONDS = 30
MIB = 1024 * 1024


@dataclass(frozen=True)
class LoadResult:
    """One measurement of a route: requests/s, latency in ms, and worker processor time per request in us."""

    rps: float
    p50_ms: float
    p99_ms: float
    worker_us: float


def find_wrk() -> str:
    """Return the path of wrk, or exit and say how to install it.

    There is no fallback in Python: it would need more processor time per request
    than the server under test.
    """
    found = shutil.which("wrk")
    if found is None:
        sys.exit("error: no wrk to put load on serving; on Debian and Ubuntu: apt-get install wrk")
    return found


class Server:
    """A running gunicorn."""

    def __init__(self, process: psutil.Popen, port: int) -> None:
        self._process = process
        self._port = port

    def load(self, wrk: str, path: str, users: Path, *, connections: int, seconds: int) -> LoadResult:
        """Request `path` as fast as it is answered; `<id>` in it is replaced by ids from the file `users`."""
        command = [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(SCRIPT)]
        before = self._cpu_seconds()
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{self._port}", "--", path, str(users)],
            capture_output=True,
            text=True,
            check=False,
        )
        return read_figures(done.stdout + done.stderr, self._cpu_seconds() - before)

    def sources(self) -> dict[str, float]:
        """Return the number of answers by source, `personal` or `popular`, from the metrics of serving."""
        return read_sources(self._metrics())

    def counter(self, name: str) -> float:
        """Return a counter of serving, summed over its labels."""
        families = text_string_to_metric_families(self._metrics())
        samples = [sample for family in families for sample in family.samples]
        return sum(sample.value for sample in samples if sample.name == name)

    def _metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics") as answer:
            return str(answer.read().decode())

    def memory(self) -> tuple[float, float]:
        """Return the largest PSS and RSS of a worker, in MiB.

        Workers are forks of one process and share pages; PSS counts 1/n of a
        page that n processes share.
        """
        found = [worker.memory_full_info() for worker in self._process.children()]
        return max(info.pss for info in found) / MIB, max(info.rss for info in found) / MIB

    def _cpu_seconds(self) -> float:
        times = [worker.cpu_times() for worker in self._process.children()]
        return float(sum(spent.user + spent.system for spent in times))


def read_figures(output: str, cpu_seconds: float) -> LoadResult:
    """Parse the output of `load.lua`; exit if a request or wrk itself failed."""
    line = next((line for line in output.splitlines() if line.startswith("{")), None)
    if line is None:
        sys.exit(f"error: wrk printed no result: {output.strip()}")
    printed: dict[str, Any] = json.loads(line)
    if printed["failed"] or not printed["requests"]:
        sys.exit(f"error: {printed['failed']} of {printed['requests']} requests failed")
    rps, worker_us = printed["requests"] / printed["seconds"], cpu_seconds / printed["requests"] * 1e6
    return LoadResult(rps, printed["p50_ms"], printed["p99_ms"], worker_us)


def read_sources(exposition: str) -> dict[str, float]:
    """Sum requests by source over metrics in Prometheus's text format; skip those without a source."""
    counted: dict[str, float] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name == "overnight_requests_total" and sample.labels["source"]:
                source = sample.labels["source"]
                counted[source] = counted.get(source, 0) + sample.value
    return counted


@contextmanager
def gunicorn(
    conf: str, app: str, ready: str, options: tuple[str, ...] = (), **environment: str
) -> Iterator[Server]:
    """Run gunicorn on a free port until the end of the block; yield once the path `ready` is answered.

    Parameters
    ----------
    conf, app, options
        Arguments of gunicorn; `options` override `conf`.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    values = {**os.environ, "OVERNIGHT_PORT": str(port), "OVERNIGHT_METRICS_PORT": "0"}
    values |= {"OVERNIGHT_HOST": "127.0.0.1", "OVERNIGHT_API_TOKENS": "", "OVERNIGHT_LOG_LEVEL": "WARNING"}
    # On a busy machine Redis may answer late; a fallback from memory would be cheaper than a real answer.
    values["OVERNIGHT_REDIS_TIMEOUT_MS"] = "2000"
    values |= environment
    process = psutil.Popen([sys.executable, "-m", "gunicorn", "-c", conf, *options, app], env=values)
    try:
        wait_for(f"http://127.0.0.1:{port}{ready}", process)
        yield Server(process, port)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def wait_for(url: str, process: psutil.Popen) -> None:
    """Wait until a URL is answered; exit if it is not within READY_SECONDS."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url):
                return
        except OSError:
            time.sleep(0.05)
    sys.exit(f"error: nothing answers at {url}")
