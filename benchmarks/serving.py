"""Measures serving beside a bare Flask app under the same gunicorn settings, by wrk, in one run.

All take turns, round after round: Flask that answers `{}`, the same after one
GET from Redis, and the two routes that a feed asks, for as many users as have a
list; the first of these also with a request that Flask has to answer. Medians
count, and the ratio is the median of the rounds' own ratios. The lists are
those live in `REDIS_URL`; where none are, a night is run first. `JSON` names a
file for the rows. The plot goes to docs/serving.png.
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

from benchmarks.load import MIB, Measured, Server, find_wrk, gunicorn
from benchmarks.report import Columns, machine, print_head, print_row, save_rows
from contract.experiment import CONTROL
from contract.keys import Keys
from contract.settings import Settings

BARE, ONE_GET = "bare Flask", "bare Flask and one GET"
USERS, POST = "/users/<id>/recommendations", "/post/recommendations/?id=<id>&limit=5"
FLASK = "/users/... through Flask"
# With something to unescape in its query, a request is none that is answered in front of Flask.
PATHS = {BARE: "/", ONE_GET: "/<id>", USERS: USERS, POST: POST, FLASK: f"{USERS}?odd=%20"}
MOST_USERS = 50_000
LEAST_RATIO, MOST_P99_RATIO, MOST_WORKER_MB = 0.8, 2.0, 80
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
    """Measure, print a table and what it misses, write JSON and the plot."""
    wrk, asked, settings = find_wrk(), arguments(), Settings.from_environment()
    with (
        redis.Redis.from_url(settings.stores.redis_url, decode_responses=True) as client,
        ExitStack() as stack,
    ):
        run_id = live_run(client, Keys(settings.stores.key_prefix), asked.limit_users)
        file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "users"
        users = write_users(client, Keys(settings.stores.key_prefix), run_id, file)
        plain = stack.enter_context(gunicorn(BARE_CONF, "benchmarks.bare_flask:bare()", "/"))
        app = f"benchmarks.bare_flask:one_get({run_id!r})"
        getting = stack.enter_context(gunicorn(BARE_CONF, app, "/1"))
        ours = stack.enter_context(gunicorn(OUR_CONF, "serving.wsgi:app", "/readyz"))
        servers = {BARE: plain, ONE_GET: getting, USERS: ours, POST: ours, FLASK: ours}
        print(
            f"{machine()}; {users:,} users, {settings.serving.workers} workers, "
            f"{asked.connections} connections"
        )
        print(f"medians of {asked.rounds} rounds of {asked.seconds} s", flush=True)
        rounds = in_turn(wrk, servers, file, asked)
        rows = [row_of(route, rounds, server.memory()) for route, server in servers.items()]
        sources = ours.sources()
    print_head(COLUMNS)
    for row in rows:
        print_row(COLUMNS, row)
    personal = sources.get("personal", 0) / sum(sources.values())
    print(f"{personal:.3%} of the answers came from the user's own list")
    print("\n".join(missed(rows)) or "every target is met")
    save_rows(rows)
    draw(rows, asked.plot)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.serving", description="Measure serving.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=5, help="of load on each route in each round")
    parser.add_argument("--connections", type=int, default=8, help="that ask at the same time")
    parser.add_argument("--limit-users", type=int, help="for the night, where one has to be run")
    parser.add_argument("--plot", type=Path, default=Path("docs/serving.png"))
    return parser.parse_args()


def live_run(client: redis.Redis, keys: Keys, limit_users: int | None) -> str:
    """Return the live run of `control`, after a night where there is none."""
    if client.get(keys.live(CONTROL)) is None:
        limit = [] if limit_users is None else ["--limit-users", str(limit_users)]
        night = [sys.executable, "-m", "batch", "run", "--variant", CONTROL, *limit]
        if subprocess.run(night, stdout=subprocess.DEVNULL, check=False).returncode:
            sys.exit("error: the night failed")
    return str(client.get(keys.live(CONTROL)))


def write_users(client: redis.Redis, keys: Keys, run_id: str, file: Path) -> int:
    """Write the ids of users with a list, one a line, in Redis's own disorder; return how many."""
    start = keys.user(run_id, 0).removesuffix("0")
    found = client.scan_iter(f"{start}*", count=1_000)
    ids = [key.removeprefix(start) for key in itertools.islice(found, MOST_USERS)]
    file.write_text("".join(f"{user_id}\n" for user_id in ids), encoding="utf-8")
    return len(ids)


def in_turn(
    wrk: str, servers: dict[str, Server], users: Path, asked: argparse.Namespace
) -> dict[str, list[Measured]]:
    """Put load on each route in each round, one after the other; a first second each is not counted."""
    for route, server in servers.items():
        server.load(wrk, PATHS[route], users, asked.connections, 1)
    rounds: dict[str, list[Measured]] = {route: [] for route in servers}
    for _ in range(asked.rounds):
        for route, server in servers.items():
            measured = server.load(wrk, PATHS[route], users, asked.connections, asked.seconds)
            rounds[route].append(measured)
    return rounds


def row_of(route: str, rounds: dict[str, list[Measured]], memory: tuple[float, float]) -> dict[str, Any]:
    """Return a route's medians, those beside the bare app of the same round, and its workers' memory."""
    found, beside = rounds[route], list(zip(rounds[route], rounds[BARE], strict=True))
    return {
        "route": route,
        "rps": median(one.rps for one in found),
        "p50_ms": median(one.p50_ms for one in found),
        "p99_ms": median(one.p99_ms for one in found),
        "rps_ratio_to_bare": median(one.rps / bare.rps for one, bare in beside),
        "p99_ratio_to_bare": median(one.p99_ms / bare.p99_ms for one, bare in beside),
        "worker_us": median(one.worker_us for one in found),
        "worker_mib": memory[0],
        "worker_rss_mib": memory[1],
    }


def missed(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each target that a route of serving misses."""
    lines = []
    for row in rows:
        if row["route"] not in (USERS, POST):
            continue
        ratio, p99_ratio = row["rps_ratio_to_bare"], row["p99_ratio_to_bare"]
        megabytes = row["worker_mib"] * MIB / 1e6
        if ratio < LEAST_RATIO:
            lines.append(f"{row['route']}: throughput {ratio:.2f} of bare, not {LEAST_RATIO}")
        if p99_ratio > MOST_P99_RATIO:
            lines.append(f"{row['route']}: p99 {p99_ratio:.2f} of bare's, not {MOST_P99_RATIO}")
        if megabytes >= MOST_WORKER_MB:
            lines.append(f"{row['route']}: {megabytes:.0f} MB a worker, not under {MOST_WORKER_MB}")
    return lines


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw requests a second and the 99th percentile of each route."""
    from matplotlib import pyplot as plt  # tests run without it

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
