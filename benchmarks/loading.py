"""Measure how loading, a night and a refresh scale with the number of interactions.

    python -m benchmarks.loading INTERACTIONS ... [--keep]

For each number a network is simulated on servers of its own under `.bench`,
which are stopped and removed at the end. With `--keep` they stay, and an existing
network of that size is reused. Each row measures, in this order:

    count(*)     fills the page cache for all that follows
    copy         COPY of all interactions to this process, discarded
    load         pull and count of a night, in a process of its own
    copy         again; the row has the mean of the two, one before and one after the load
    night        `python -m batch run --variant control`
    refresh      `python -m batch refresh --variant control`, after up to 2,000
                 users have viewed and liked a post

Nights and refreshes are timed as whole processes, including their start. A tiny
network is measured first and not shown, so that code compiled at first use is
compiled. `JSON` names a file for the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import psycopg2
import redis
import sqlalchemy as sa

from batch.redis_client import live_run_id
from benchmarks.report import Columns, machine, print_head, print_row, save_rows
from contract.columns import ACTION, HAPPENED_AT, INTERACTIONS, POST_ID, SCHEMA, USER_ID
from contract.errors import OvernightError
from contract.experiment import CONTROL
from contract.keys import Keys
from contract.settings import Settings
from demo.postgres import make_engine
from demo.processes import ROOT, Stopped, raise_on_signal, read_last_lines, run_module
from demo.servers import Servers, prepare_servers

FOLDER = ROOT / ".bench"
LOAD = "load"
MIB = 2**20

REAL_INTERACTIONS, REAL_USERS, REAL_POSTS = 76_892_800, 163_205, 7_023
"""The size of a real network; simulated ones have the same proportions."""

MIN_POSTS = 500
REFRESHED_USERS = 2_000

COLUMNS: Columns = {
    "interactions": ("interactions", "12,"),
    "users": ("users", "8,"),
    "posts": ("posts", "6,"),
    "copy_seconds": ("copy s", "8.2f"),
    "load_seconds": ("load s", "8.2f"),
    "pull_seconds": ("pull s", "8.2f"),
    "ratio_to_copy": ("load/copy", "9.2f"),
    "night_seconds": ("night s", "8.1f"),
    "refresh_seconds": ("refresh s", "9.1f"),
    "refreshed_users": ("of users", "8,"),
    "peak_mib": ("load MiB", "8,.0f"),
    "night_peak_mib": ("night MiB", "9,.0f"),
    "refresh_peak_mib": ("refresh MiB", "11,.0f"),
    "store_mib": ("store MiB", "9,.1f"),
}

COPY = f"COPY (SELECT {USER_ID}, {POST_ID}, {ACTION}, {HAPPENED_AT} FROM {SCHEMA}.{INTERACTIONS}) TO STDOUT"
SIMULATION = sa.text("SELECT seed, users, posts, interactions FROM simulation")
OWN_TABLES = sa.text("""
    SELECT format('%I.%I', nspname, relname) FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
    WHERE nspname = :schema AND relkind = 'r'
""")
LAST_TIME = sa.text("SELECT max(time) FROM feed_action")
ADD_ACTIONS = sa.text("""
    INSERT INTO feed_action (user_id, post_id, action, time)
    SELECT chosen.id, numbered.id, action, :last + delay
    FROM (SELECT id, row_number() OVER (ORDER BY md5(id::text)) AS number FROM "user") AS chosen
    JOIN (SELECT id, row_number() OVER (ORDER BY id) - 1 AS number, count(*) OVER () AS posts FROM post)
        AS numbered ON numbered.number = chosen.number % posts
    CROSS JOIN (VALUES ('view', interval '1 second'), ('like', interval '2 seconds')) AS acts (action, delay)
    WHERE chosen.number <= :users
""")
DELETE_ACTIONS = sa.text("DELETE FROM feed_action WHERE time > :last")


@dataclass(frozen=True)
class Network:
    """The size of a simulated network."""

    interactions: int
    users: int
    posts: int

    @classmethod
    def of(cls, interactions: int) -> Network:
        """Return a size with the proportions of the real network, rounded up; at least MIN_POSTS posts."""
        users, posts = (-(-interactions * real // REAL_INTERACTIONS) for real in (REAL_USERS, REAL_POSTS))
        return cls(interactions, users, max(posts, MIN_POSTS))


TINY = Network(20_000, 200, 100)


@dataclass(frozen=True)
class ProcessResult:
    """A process that succeeded: its output, seconds including its start, largest resident memory."""

    output: str
    seconds: float
    peak_mib: float


def main() -> None:
    """Measure, print one table and write JSON."""
    if sys.argv[1:] == [LOAD]:
        print(json.dumps(load()))
        return
    options = parse_arguments()
    try:
        with raise_on_signal():
            compare([Network.of(number) for number in options.interactions], keep=options.keep)
    except OvernightError as error:
        sys.exit(f"error: {error}")
    except Stopped as stopped:
        sys.exit(stopped.exit_code)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.loading", description="Measure loading.")
    parser.add_argument("interactions", type=int, nargs="+", help="sizes of the networks")
    parser.add_argument("--keep", action="store_true", help="keep the networks for the next time")
    return parser.parse_args()


def compare(networks: list[Network], *, keep: bool) -> None:
    """Measure each network; write the rows so far after each."""
    measure(TINY, FOLDER / "load-tiny")
    shutil.rmtree(FOLDER / "load-tiny")
    print(f"{machine()}; copy is the mean of one before and one after the load")
    print_head(COLUMNS)
    rows = []
    for network in networks:
        folder = FOLDER / f"load-{network.interactions}"
        rows.append(measure(network, folder))
        print_row(COLUMNS, rows[-1])
        save_rows(rows)
        if not keep:
            shutil.rmtree(folder)


def measure(network: Network, folder: Path) -> dict[str, Any]:
    """Simulate a network in a folder unless it exists, measure it, and return a row.

    Raises
    ------
    OvernightError
        A server or a process failed, or processed another number of rows than expected.
    """
    servers = prepare_servers(folder)
    try:
        servers.start()
        environment = servers.environment() | {
            "OVERNIGHT_MODEL_DIR": str(folder / "models"),
            "OVERNIGHT_STORE_DIR": "",
        }
        engine = make_engine(servers.postgres.url())
        simulate(network, engine, environment)
        clear(servers, engine)
        log = folder / "bench.log"
        with engine.connect() as connection:
            connection.exec_driver_sql(
                "CHECKPOINT"
            )  # or writes of the simulation would go on during the measurement
            connection.exec_driver_sql(f"SELECT count(*) FROM {SCHEMA}.{INTERACTIONS}")
        copies = [copy_seconds(servers.postgres.url())]
        # Embedding texts is not part of loading; the night follows the settings.
        loading = run("benchmarks.loading", [LOAD], environment | {"OVERNIGHT_EMBEDDINGS": "off"}, log)
        copies.append(copy_seconds(servers.postgres.url()))
        night = run("batch", ["run", "--variant", CONTROL], environment, log)
        store = live_store(servers, folder / "models")
        with add_actions(engine, min(REFRESHED_USERS, network.users)) as users:
            refresh = run("batch", ["refresh", "--variant", CONTROL, "--json"], environment, log)
    finally:
        servers.stop()
    loaded, (refreshed,) = json.loads(loading.output), json.loads(refresh.output)
    for what, found, expected in (
        ("interactions loaded", loaded["interactions"], network.interactions),
        ("users refreshed", refreshed["users"], users),
    ):
        if found != expected:
            raise OvernightError(f"{what}: {found:,}, not {expected:,}")
    return {
        "interactions": network.interactions,
        "users": network.users,
        "posts": network.posts,
        "copy_seconds": round(fmean(copies), 3),
        "load_seconds": loaded["load_seconds"],
        "pull_seconds": loaded["pull_seconds"],
        "ratio_to_copy": round(loaded["load_seconds"] / fmean(copies), 3),
        "night_seconds": round(night.seconds, 3),
        "refresh_seconds": round(refresh.seconds, 3),
        "refreshed_users": users,
        "peak_mib": round(loading.peak_mib, 1),
        "night_peak_mib": round(night.peak_mib, 1),
        "refresh_peak_mib": round(refresh.peak_mib, 1),
        "store_mib": round(store.stat().st_size / MIB, 1),
    }


def simulate(network: Network, engine: sa.Engine, environment: dict[str, str]) -> None:
    """Simulate a network unless the database already has it."""
    seed = Settings.from_environment().night.seed
    if not is_simulated(network, engine, seed):
        numbers = {**vars(network), "seed": seed}
        options = [word for name, number in numbers.items() for word in (f"--{name}", str(number))]
        run_module("demo", ["simulate", *options], environment)


def is_simulated(network: Network, engine: sa.Engine, seed: int) -> bool:
    """Return whether the database has exactly this simulated network."""
    with engine.connect() as connection:
        if connection.exec_driver_sql("SELECT to_regclass('simulation')").scalar() is None:
            return False
        simulated = connection.execute(SIMULATION).one()
        rows = connection.exec_driver_sql("SELECT count(*) FROM feed_action").scalar()
    return rows == network.interactions and dict(simulated._mapping) == {**vars(network), "seed": seed}


def clear(servers: Servers, engine: sa.Engine) -> None:
    """Remove runs, ledger and models of an earlier night."""
    with engine.begin() as connection:
        for table in connection.scalars(OWN_TABLES, {"schema": SCHEMA}).all():
            connection.exec_driver_sql(f"DROP TABLE {table} CASCADE")
    with redis.Redis.from_url(servers.valkey.url()) as client:
        client.flushall()
    shutil.rmtree(servers.folder / "models", ignore_errors=True)


def copy_seconds(database_url: str) -> float:
    """Return the seconds that COPY of all interactions takes, with the rows discarded."""
    with (
        closing(psycopg2.connect(database_url)) as connection,
        connection.cursor() as cursor,
        open(os.devnull, "wb") as devnull,
    ):
        started = time.perf_counter()
        cursor.copy_expert(COPY, devnull)
        return time.perf_counter() - started


def load() -> dict[str, Any]:
    """Pull and count the network in `DATABASE_URL` as a night does; return interactions and seconds."""
    # Imported here, so that only this process has the memory that loading needs.
    from threadpoolctl import threadpool_limits

    from batch.loading.pull import pull
    from batch.postgres import connected
    from batch.training.dataset import load_dataset

    settings, clock = Settings.from_environment(), datetime.now(UTC)
    with connected(settings, "benchmarks.loading") as engine, threadpool_limits(1, user_api="blas"):
        started = time.perf_counter()
        with pull(engine, settings, clock) as pulled:
            pull_seconds = time.perf_counter() - started
            dataset = load_dataset(pulled, settings, engine, None)
            load_seconds = time.perf_counter() - started
    return {
        "interactions": dataset.interactions,
        "pull_seconds": round(pull_seconds, 3),
        "load_seconds": round(load_seconds, 3),
    }


def run(module: str, options: list[str], environment: dict[str, str], log: Path) -> ProcessResult:
    """Run `python -m module options` to its end.

    Raises
    ------
    OvernightError
        Its exit code is not 0.
    """
    command = [sys.executable, "-m", module, *options]
    with tempfile.TemporaryFile("w+") as output, log.open("a") as errors:
        started = time.perf_counter()
        child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=errors)
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.terminate()
            child.wait()
            raise
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            raise OvernightError(f"python -m {' '.join([module, *options])} failed: {read_last_lines(log)}")
        output.seek(0)
        return ProcessResult(output.read(), seconds, usage.ru_maxrss / 1024)


def live_store(servers: Servers, models: Path) -> Path:
    """Return the store file of the live run of `control`."""
    keys = Keys(Settings.from_environment().stores.key_prefix)
    with redis.Redis.from_url(servers.valkey.url(), decode_responses=True) as client:
        return models / str(live_run_id(client, keys, CONTROL)) / "store.duckdb"


@contextmanager
def add_actions(engine: sa.Engine, users: int) -> Iterator[int]:
    """Add a view and a like of some users just after the last interaction; delete them at the end.

    Yields
    ------
    The number of users with new interactions.
    """
    with engine.begin() as connection:
        last = connection.scalar(LAST_TIME)
        rows = connection.execute(ADD_ACTIONS, {"last": last, "users": users}).rowcount
    try:
        yield rows // 2
    finally:
        with engine.begin() as connection:
            connection.execute(DELETE_ACTIONS, {"last": last})


if __name__ == "__main__":
    main()
