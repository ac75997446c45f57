"""Measure serving with wrk, compared with a bare Flask app under the same gunicorn settings.

In each round all are measured in turn: a Flask app that returns `{}`, the same
after one Redis GET, and the two routes of the feed, for all users with a list;
the first route also with a request that Flask has to answer. The figures are
medians over rounds; a ratio is the median of the rounds' ratios. The lists are
the live ones in `REDIS_URL`; without any, a night is run first. `JSON` names a
file for the rows. The plot is written to docs/serving.png.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import redis

from batch.redis_client import live_run_id
from benchmarks.load import MIB, LoadResult, Server, find_wrk, gunicorn
from benchmarks.report import Columns, machine, print_head, print_row, save_rows
from contract.experiment import CONTROL
from contract.keys import Keys
from contract.settings import Settings

BARE, ONE_GET = "bare Flask", "bare Flask and one GET"
USERS, POST = "/users/<id>/recommendations", "/post/recommendations/?id=<id>&limit=5"
FLASK = "/users/... through Flask"
# The fast path leaves a query with percent-encoding to Flask.
PATHS = {BARE: "/", ONE_GET: "/<id>", USERS: USERS, POST: POST, FLASK: f"{USERS}?odd=%20"}
MAX_USERS = 50_000
MIN_RATIO, MAX_P99_RATIO, MAX_WORKER_MB = 0.8, 2.0, 80
BARE_CONF, OUR_CONF = "benchmarks/bare.conf.py", "serving/gunicorn.conf.py"
COLUMNS: Columns = {
    "route": ("route", ">39"),
    "rps": ("req/s", "8,.0f"),
    "rps_ratio_to_bare": ("ratio to bare", "13.2f"),
    "p50_ms": ("p50 ms", "7.2f"),
    "p99_ms": ("p99 ms", "7.2f"),
    "p99_ratio_to_bare": ("p99 ratio", "9.2f"),
    "worker_us": ("worker us", "9.0f"),
    "worker_mib": ("PSS MiB", "7.1f"),
    "worker_rss_mib": ("RSS MiB", "7.1f"),
}


def main() -> None:
    """Measure, print a table and the missed targets, write JSON and the plot."""
    wrk, options, settings = find_wrk(), parse_arguments(), Settings.from_environment()
    with (
        redis.Redis.from_url(settings.stores.redis_url, decode_responses=True) as client,
        ExitStack() as stack,
    ):
        run_id = live_run(client, Keys(settings.stores.key_prefix), options.limit_users)
        file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "users"
        users = write_users(client, Keys(settings.stores.key_prefix), run_id, file)
        plain = stack.enter_context(gunicorn(BARE_CONF, "benchmarks.bare_flask:bare()", "/"))
        app = f"benchmarks.bare_flask:one_get({run_id!r})"
        getting = stack.enter_context(gunicorn(BARE_CONF, app, "/1"))
        overnight = stack.enter_context(gunicorn(OUR_CONF, "serving.wsgi:app", "/readyz"))
        servers = {BARE: plain, ONE_GET: getting, USERS: overnight, POST: overnight, FLASK: overnight}
        print(
            f"{machine()}; {users:,} users, {settings.serving.workers} workers, "
            f"{options.connections} connections"
        )
        print(f"medians of {options.rounds} rounds of {options.seconds} s", flush=True)
        rounds = measure_in_turn(wrk, servers, file, options)
        rows = [make_row(route, rounds, server.memory()) for route, server in servers.items()]
        sources = overnight.sources()
    print_head(COLUMNS)
    for row in rows:
        print_row(COLUMNS, row)
    personal = sources.get("personal", 0) / sum(sources.values())
    print(f"{personal:.3%} of the answers came from the user's own list")
    print("\n".join(list_missed_targets(rows)) or "all targets are met")
    save_rows(rows)
    draw(rows, options.plot)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.serving", description="Measure serving.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=5, help="load on each route in each round")
    parser.add_argument("--connections", type=int, default=8, help="connections of wrk")
    parser.add_argument("--limit-users", type=int, help="users of the night, if one has to be run")
    parser.add_argument("--plot", type=Path, default=Path("docs/serving.png"))
    return parser.parse_args()


def live_run(client: redis.Redis, keys: Keys, limit_users: int | None = None, variant: str = CONTROL) -> str:
    """Return the live run of a variant; run a night if there is none."""
    if live_run_id(client, keys, variant) is None:
        limit = [] if limit_users is None else ["--limit-users", str(limit_users)]
        night = [sys.executable, "-m", "batch", "run", "--variant", variant, *limit]
        if subprocess.run(night, stdout=subprocess.DEVNULL, check=False).returncode:
            sys.exit("error: the night failed")
    return str(live_run_id(client, keys, variant))


def write_users(client: redis.Redis, keys: Keys, run_id: str, file: Path) -> int:
    """Write the ids of users with a list, one a line, in the order of SCAN; return their number."""
    start = keys.user(run_id, 0).removesuffix("0")
    found = client.scan_iter(f"{start}*", count=1_000)
    ids = [key.removeprefix(start) for key in itertools.islice(found, MAX_USERS)]
    file.write_text("".join(f"{user_id}\n" for user_id in ids), encoding="utf-8")
    return len(ids)


def measure_in_turn(
    wrk: str, servers: dict[str, Server], users: Path, options: argparse.Namespace
) -> dict[str, list[LoadResult]]:
    """Put load on each route once a round; a first second each is not counted."""
    for route, server in servers.items():
        server.load(wrk, PATHS[route], users, connections=options.connections, seconds=1)
    rounds: dict[str, list[LoadResult]] = {route: [] for route in servers}
    for _ in range(options.rounds):
        for route, server in servers.items():
            result = server.load(
                wrk, PATHS[route], users, connections=options.connections, seconds=options.seconds
            )
            rounds[route].append(result)
    return rounds


def make_row(route: str, rounds: dict[str, list[LoadResult]], memory: tuple[float, float]) -> dict[str, Any]:
    """Return a route's medians, its ratios to the bare app in the same round, and its workers' memory."""
    results, pairs = rounds[route], list(zip(rounds[route], rounds[BARE], strict=True))
    return {
        "route": route,
        "rps": median(one.rps for one in results),
        "p50_ms": median(one.p50_ms for one in results),
        "p99_ms": median(one.p99_ms for one in results),
        "rps_ratio_to_bare": median(one.rps / bare.rps for one, bare in pairs),
        "p99_ratio_to_bare": median(one.p99_ms / bare.p99_ms for one, bare in pairs),
        "worker_us": median(one.worker_us for one in results),
        "worker_mib": memory[0],
        "worker_rss_mib": memory[1],
    }


def list_missed_targets(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return one line for each target that a route of serving misses."""
    lines = []
    for row in rows:
        if row["route"] not in (USERS, POST):
            continue
        ratio, p99_ratio = row["rps_ratio_to_bare"], row["p99_ratio_to_bare"]
        megabytes = row["worker_mib"] * MIB / 1e6
        if ratio < MIN_RATIO:
            lines.append(f"{row['route']}: throughput {ratio:.2f} of bare, not {MIN_RATIO}")
        if p99_ratio > MAX_P99_RATIO:
            lines.append(f"{row['route']}: p99 {p99_ratio:.2f} of bare's, not {MAX_P99_RATIO}")
        if megabytes >= MAX_WORKER_MB:
            lines.append(f"{row['route']}: {megabytes:.0f} MB a worker, not under {MAX_WORKER_MB}")
    return lines


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw requests a second and the 99th percentile of each route."""
    from matplotlib import pyplot as plt  # not installed where tests run

    names = [row["route"].replace("/recommendations", "/\nrecommendations", 1) for row in rows]
    colours = ["#999999", "#777777", "#1f77b4", "#1f77b4", "#aec7e8"]
    figure, panels = plt.subplots(1, 2, figsize=(11, 2.8), sharey=True)
    for panel, key, title in zip(panels, ("rps", "p99_ms"), ("requests a second", "p99, ms"), strict=True):
        bars = panel.barh(names, [row[key] for row in rows], color=colours[: len(rows)])
        panel.bar_label(bars, fmt="{:,.0f}" if key == "rps" else "{:.1f}", padding=3)
        panel.set(title=title)
        panel.margins(x=0.15)
    panels[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
