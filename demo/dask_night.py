"""`dask`: run a night on a scheduler and two workers of Dask, run it again on threads, and compare the lists.

The workers are processes of this machine, set up as on machines of their own: a token, a user of Valkey with
the rights of a worker alone, and no database. Everything is stopped at the end.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from batch.executors.packages import require_dask
from batch.formatting import echo, table
from batch.publishing.go_live import read_manifest
from batch.redis_client import blocks, get_many, live_run_id
from contract.errors import LockedError
from contract.experiment import VARIANTS
from contract.keys import Keys
from contract.settings import Settings
from demo.checks import Expected, check_answers, choose_examples
from demo.gunicorn import SERVING, Gunicorn
from demo.network_folders import record_loaded_network
from demo.postgres import make_engine
from demo.processes import (
    POLL_SECONDS,
    ROOT,
    ChildProcess,
    DemoError,
    free_port,
    hold_lock,
    ignore_signals,
    print_duration,
    raise_on_signal,
    read_last_lines,
    run_module,
)
from demo.servers import Servers, prepare_servers, up_lock

FOLDER = "dask"
USER_FILE = ROOT / "deploy" / "redis-users.acl"
USER, PASSWORD_WORD = "worker", "REDIS_WORKER_PASSWORD"

LOOPBACK = "127.0.0.1"
WORKERS = 2
THREADS = "1"
"""Threads of each worker; together as many as two cores have."""

START_SECONDS = 60
NIGHT = ["run", "--variant", "all"]
ON_DASK, ON_THREADS = "recs", "threads"
"""Key prefixes of the two nights, which so do not know of each other."""

QUICK = {"OVERNIGHT_RECIPE": "liked-if-viewed", "OVERNIGHT_TRAINING_ROWS": "100000"}
"""Settings of both nights: training is not what is shown."""

KEYS_BATCH = 1_000
OURS = ("OVERNIGHT_", "DATABASE_URL", "REDIS_URL", "PG")
"""Beginnings of variables that none of the processes inherits: all nights have equal settings."""


@dataclass(frozen=True)
class NetworkSize:
    """Size of the network to simulate."""

    users: int
    posts: int
    interactions: int


@dataclass(frozen=True)
class _Children:
    """What runs in addition to the servers, and stops with them."""

    scheduler: ChildProcess
    workers: tuple[ChildProcess, ...]
    serving: Gunicorn

    def __iter__(self) -> Iterator[ChildProcess]:
        yield self.serving
        yield from self.workers
        yield self.scheduler


def run_dask_demo(folder: Path, size: NetworkSize) -> None:
    """Run the night on Dask and on threads, compare, check serving's answers, and stop everything.

    Raises
    ------
    LockedError
        Another one uses the folder.
    DemoError
        A process does not start, lists differ, or an answer is wrong.
    OvernightError
        The packages of requirements-dask.txt are not installed.
    """
    require_dask("python -m demo dask")
    servers = prepare_servers(folder / FOLDER)
    children = _Children(
        ChildProcess(servers.folder, "dask-scheduler"),
        tuple(ChildProcess(servers.folder, f"dask-worker-{number + 1}") for number in range(WORKERS)),
        Gunicorn(servers.folder, SERVING, LOOPBACK, free_port()),
    )
    try:
        with hold_lock(up_lock(servers.folder), wait=False), raise_on_signal():
            for child in children:
                child.stop()  # a killed demo may have left one
            try:
                _run(servers, children, size)
            finally:
                _stop(servers, children)
    except BlockingIOError:
        raise LockedError(f"another `python -m demo dask` uses {servers.folder}; wait for it") from None


def _stop(servers: Servers, children: _Children) -> None:
    ignore_signals()
    with ExitStack() as stack:  # each is stopped even if another one cannot be
        stack.callback(echo, "==> Everything is stopped")
        stack.callback(servers.stop)
        for child in children:
            stack.callback(child.stop)
        for child in children:  # all at once
            child.request_stop()


def _run(servers: Servers, children: _Children, size: NetworkSize) -> None:
    with print_duration("Starting Postgres and Valkey"):
        servers.start()
    environment = (
        _inherited()
        | QUICK
        | {
            "DATABASE_URL": servers.postgres.url(),
            "REDIS_URL": servers.valkey.url(),
            "OVERNIGHT_MODEL_DIR": str(servers.folder / "models"),
        }
    )
    engine = make_engine(servers.postgres.url())
    servers.valkey.delete_keys()  # of an earlier demo, as its models
    shutil.rmtree(servers.folder / "models", ignore_errors=True)
    with print_duration(f"Simulating {size.users:,} users and {size.posts:,} posts"):
        options = {"users": size.users, "posts": size.posts, "interactions": size.interactions}
        arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        run_module("demo", ["simulate", *arguments], environment)
        record_loaded_network(engine, "simulated", 0)
    with redis.Redis.from_url(servers.valkey.url(), decode_responses=True) as client:
        dask = {
            "OVERNIGHT_DASK": f"tcp://{LOOPBACK}:{free_port()}",
            "OVERNIGHT_DASK_TOKEN": secrets.token_hex(24),
        }
        with print_duration(f"Starting a Dask scheduler and {WORKERS} workers, which have no database"):
            workers = _start_dask(children, servers, client, dask)
        with print_duration("Running the night on the workers (python -m batch run --variant all)"):
            run_module("batch", NIGHT, environment | dask)
        tasks = _count_tasks(dask, workers)
        with print_duration("Running the same night on threads of one process"):
            run_module("batch", NIGHT, environment | {"OVERNIGHT_KEY_PREFIX": ON_THREADS})
        with print_duration(f"Starting serving on {children.serving.url}, to check what it answers"):
            address = {"OVERNIGHT_HOST": LOOPBACK, "OVERNIGHT_PORT": str(children.serving.port)}
            children.serving.start_ready(environment | address)
        expected = Expected.of_live_run(engine, client, Keys(ON_DASK))
        check_answers(choose_examples(expected), expected, children.serving.url)
        echo("Every answer is right.\n")
        differing = _compare(client)
    echo(table(["Dask worker", "tasks"], [[worker, count] for worker, count in tasks.items()]))
    echo(f"Their logs are in {servers.folder}.")
    if differing:
        raise DemoError(f"{differing} lists of the workers are not those of threads")
    if not all(tasks.values()):
        raise DemoError(f"a Dask worker ran no task: {tasks}; see {children.workers[0].log}")


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(OURS)}


def _start_dask(
    children: _Children, servers: Servers, client: redis.Redis, dask: dict[str, str]
) -> list[str]:
    """Start the scheduler and the workers; return the workers' addresses when all are there."""
    password = secrets.token_hex(24)
    execute: Any = client.execute_command  # it has no types
    execute("ACL", "SETUSER", USER, "reset", *_worker_rights(password))
    port = dask["OVERNIGHT_DASK"].rpartition(":")[2]
    base = _inherited() | dask
    children.scheduler.start(["-m", "batch", "dask-scheduler", "--host", LOOPBACK, "--port", port], base)
    redis_url = servers.valkey.url().partition("@")[2]
    own = {"REDIS_URL": f"redis://{USER}:{password}@{redis_url}", "OVERNIGHT_THREADS": THREADS}
    for worker in children.workers:
        worker.start(["-m", "batch", "dask-worker"], base | own)
    from batch.executors.dask_cluster import connect_to_cluster  # an optional package

    deadline = time.monotonic() + START_SECONDS
    _wait_for_log(children.scheduler, deadline)
    with connect_to_cluster(Settings.from_environment(dask)) as cluster:
        while len(found := cluster.call(cluster.workers())) < WORKERS:
            for worker in children.workers:
                if not worker.is_running() or time.monotonic() > deadline:
                    raise DemoError(f"{worker.name} does not start: {read_last_lines(worker.log)}")
            time.sleep(POLL_SECONDS)
    for address in sorted(found):
        echo(f"    a worker on {address}: {THREADS} thread, Valkey's user {USER!r}")
    return sorted(found)


def _wait_for_log(scheduler: ChildProcess, deadline: float) -> None:
    """Wait until the scheduler says that it listens."""
    while "listens on" not in scheduler.log.read_text(errors="replace"):
        if not scheduler.is_running() or time.monotonic() > deadline:
            raise DemoError(f"{scheduler.name} does not start: {read_last_lines(scheduler.log)}")
        time.sleep(POLL_SECONDS)


def _worker_rights(password: str) -> list[str]:
    """Return the rights of a worker as deploy/redis-users.acl has them."""
    start = f"user {USER} "
    (line,) = [line for line in USER_FILE.read_text().splitlines() if line.startswith(start)]
    return line.removeprefix(start).replace(PASSWORD_WORD, password).split()


def _count_tasks(dask: dict[str, str], workers: list[str]) -> dict[str, int]:
    """Return how many tasks each worker has run."""
    from batch.executors.dask_cluster import connect_to_cluster  # an optional package
    from batch.executors.dask_context import count_tasks

    with connect_to_cluster(Settings.from_environment(dask)) as cluster:
        return {worker: cluster.call(cluster.run(worker, count_tasks)) for worker in workers}


def _compare(client: redis.Redis) -> int:
    """Print the runs of both nights side by side; return how many lists differ."""
    rows, differing = [], 0
    for variant in VARIANTS:
        runs = [str(live_run_id(client, Keys(prefix), variant)) for prefix in (ON_DASK, ON_THREADS)]
        keys = [Keys(prefix) for prefix in (ON_DASK, ON_THREADS)]
        sums = [_checksum(client, *of_run) for of_run in zip(keys, runs, strict=True)]
        lists, wrong = _compare_lists(client, runs)
        differing += wrong + (sums[0] != sums[1])
        equal = "equal" if sums[0] == sums[1] else "DIFFERENT"
        rows.append([variant, sums[0][:16], sums[1][:16], equal, f"{lists:,}", wrong])
    names = ["variant", "checksum on workers", "checksum on threads", "checksums", "lists", "different"]
    echo(table(names, rows) + "\n")
    return differing


def _checksum(client: redis.Redis, keys: Keys, run_id: str) -> str:
    manifest = read_manifest(client, keys, run_id)
    return manifest.checksum if manifest else ""


def _compare_lists(client: redis.Redis, runs: list[str]) -> tuple[int, int]:
    """Return how many users' lists the first run has, and how many of the second are not the same."""
    start, other = (
        Keys(prefix).user(run, 0).removesuffix("0")
        for prefix, run in zip((ON_DASK, ON_THREADS), runs, strict=True)
    )
    lists = differing = 0
    for names in blocks(client.scan_iter(match=f"{start}*", count=KEYS_BATCH), KEYS_BATCH):
        ours = get_many(client, names)
        theirs = get_many(client, [other + name.removeprefix(start) for name in names])
        lists += len(names)
        differing += sum(one != another for one, another in zip(ours, theirs, strict=True))
    return lists, differing
