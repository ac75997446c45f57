"""Runs gunicorn with an app of ours, puts load on it by wrk, and tells what its workers took."""

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
class Measured:
    """One round on one route: requests a second, milliseconds, and processor microseconds of the workers."""

    rps: float
    p50_ms: float
    p99_ms: float
    worker_us: float


def find_wrk() -> str:
    """Return where wrk is, or end the process and say how to get it.

    A load tool in Python would take more of the processor for a request than
    the server that is to be measured, so there is no other to fall back on.
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

    def load(self, wrk: str, path: str, users: Path, connections: int, seconds: int) -> Measured:
        """Ask for `path`, `<id>` in it standing for the ids in the file `users`, as fast as it answers."""
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
        """Return how many answers came from where, `personal` or `popular`, as serving itself counts them."""
        return read_sources(self._metrics())

    def counter(self, name: str) -> float:
        """Return one of serving's counters, summed over its labels."""
        families = text_string_to_metric_families(self._metrics())
        samples = [sample for family in families for sample in family.samples]
        return sum(sample.value for sample in samples if sample.name == name)

    def _metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics") as answer:
            return str(answer.read().decode())

    def memory(self) -> tuple[float, float]:
        """Return the greatest PSS and RSS of a worker, in MiB.

        Workers are forks of one process and share pages; PSS counts a page
        that n processes share as an nth.
        """
        found = [worker.memory_full_info() for worker in self._process.children()]
        return max(info.pss for info in found) / MIB, max(info.rss for info in found) / MIB

    def _cpu_seconds(self) -> float:
        times = [worker.cpu_times() for worker in self._process.children()]
        return float(sum(spent.user + spent.system for spent in times))


def read_figures(output: str, cpu_seconds: float) -> Measured:
    """Read what `load.lua` printed; end the process where a request failed or wrk did."""
    line = next((line for line in output.splitlines() if line.startswith("{")), None)
    if line is None:
        sys.exit(f"error: wrk told nothing: {output.strip()}")
    told: dict[str, Any] = json.loads(line)
    if told["failed"] or not told["requests"]:
        sys.exit(f"error: {told['failed']} of {told['requests']} requests failed")
    rps, worker_us = told["requests"] / told["seconds"], cpu_seconds / told["requests"] * 1e6
    return Measured(rps, told["p50_ms"], told["p99_ms"], worker_us)


def read_sources(exposition: str) -> dict[str, float]:
    """Sum the requests that have a source, by source, over Prometheus's text format."""
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
    """Run gunicorn on a free port, yield once `ready` is answered, and stop it in the end.

    `conf` and `app` are as gunicorn takes them, and so are `options`, which overrule `conf`.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    values = {**os.environ, "OVERNIGHT_PORT": str(port), "OVERNIGHT_METRICS_PORT": "0"}
    values |= {"OVERNIGHT_HOST": "127.0.0.1", "OVERNIGHT_API_TOKENS": "", "OVERNIGHT_LOG_LEVEL": "WARNING"}
    # An answer from memory, since a busy machine kept Redis from answering in time, would be a cheap one.
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
    """Wait until a URL is answered; end the process where it is not in time."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url):
                return
        except OSError:
            time.sleep(0.05)
    sys.exit(f"error: nothing answers at {url}")
