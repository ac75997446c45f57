"""Measure scoring and writing the lists of a network by threads and by the workers of a Dask cluster.

The model of one variant is trained as in the night. Its lists are written in four ways, in turn: by one and
two threads of this process, and by one and two workers of one thread. Then the unit costs are measured, each
on its own, and the simulation of a cluster predicts the four ways from them. Memory, and what Redis holds for
its clients, are sampled in runs that are not timed, for LESS and for MORE times as many users: the same ones
under other ids. `JSON` names a file for all figures, which `python -m benchmarks.scale_out_report FILE` turns
into the tables and the drawing of docs/scaling.md.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import psutil
import redis
from threadpoolctl import threadpool_limits

from batch.arrays import Int64s
from batch.context import Stores
from batch.evaluation.learner import choose_recipe
from batch.feed_rules.apply import FeedRules
from batch.files import write_atomically
from batch.postgres import open_engine
from batch.publishing.encode import ListEncoder
from batch.publishing.list_stats import ListCounter
from batch.publishing.write import Writing, score_sample
from batch.redis_client import connected
from batch.scoring.score import CompiledModel, users_per_task
from batch.training.dataset import Dataset, open_dataset
from batch.training.fit import fit
from batch.variants import MODELS
from benchmarks.report import Columns, check_json_file, machine, print_head, print_row
from benchmarks.scale_out_costs import (
    DaskProcesses,
    dask_processes,
    difference,
    make_costs,
    measure_bytes,
    measure_scorers,
    measure_scoring,
    measure_tasks,
    measure_writing,
    read_clocks,
    redis_cluster,
)
from benchmarks.scale_out_simulation import Cluster, simulate
from contract.errors import OvernightError
from contract.experiment import TEST
from contract.settings import Settings
from demo.processes import Stopped, raise_on_signal

ROUNDS = 5
LESS, MORE = 8, 24
"""Of a network of 20,000 users both make tasks of the largest size."""
SAMPLE_SECONDS = 0.01
POSTS = (10_000, 100_000, 1_000_000)
CANDIDATE_SHARES = (0.05, 0.1, 0.2, 0.5)
RUN_ID = "20260101T000000Z-test"
MIB = 2**20

COLUMNS: Columns = {
    "way": ("way", ">17"),
    "seconds": ("seconds", "8.2f"),
    "slowest": ("slowest", "8.2f"),
    "users_per_second": ("users/s", "9,.0f"),
    "predicted_seconds": ("predicted", "9.2f"),
    "core_seconds": ("core s", "7.2f"),
    "predicted_core_seconds": ("predicted", "9.2f"),
    "driver_mib": ("driver MiB", "10.1f"),
    "driver_mib_more": ("of more", "8.1f"),
    "worker_mib": ("worker MiB", "10.0f"),
    "redis_buffer_mib": ("in Redis", "8.2f"),
    "checksum": ("checksum", ">12"),
}


@dataclass(frozen=True)
class Way:
    """How lists are written: stores with settings, and the processes of the cluster if there is one."""

    name: str
    stores: Stores
    cluster: Cluster
    processes: DaskProcesses | None

    def write(self, writing: Writing, ids: Int64s) -> str:
        """Write the users' lists, read them back, and return the checksum."""
        return writing.write(self.stores, RUN_ID, ids).written.checksum

    def read_clocks(self) -> dict[str, float]:
        """Return the processor seconds of all processes."""
        return read_clocks(self.processes.processes() if self.processes else {}, self.stores.redis)


def main() -> None:
    """Measure, print, and write JSON."""
    check_json_file()
    try:
        with raise_on_signal():  # the processes of the clusters end with this one
            figures = run()
    except OvernightError as error:
        sys.exit(f"error: {error}")
    except Stopped as stopped:
        sys.exit(stopped.exit_code)
    if path := os.environ.get("JSON"):
        write_atomically(Path(path), (json.dumps(figures, indent=1) + "\n").encode())


def run() -> dict[str, Any]:
    """Load, train, and measure; return all figures.

    Raises
    ------
    OvernightError
        A server or a process failed, or the ways wrote different lists.
    """
    settings = Settings.from_environment()
    engine = open_engine(settings, "benchmarks.scale_out")
    with (
        threadpool_limits(1, user_api="blas"),
        open_dataset(engine, settings, None, datetime.now(UTC)) as dataset,
        connected(settings) as client,
        tempfile.TemporaryDirectory() as folder,
        ExitStack() as stack,
    ):
        writing = make_writing(dataset, settings)
        clusters = [stack.enter_context(dask_processes(Path(folder), workers)) for workers in (1, 2)]
        stores = Stores(settings, engine, client, "benchmark")
        figures = measure(make_ways(stores, clusters), writing, dataset)
    figures["scorer"] = []
    for row in measure_scorers(POSTS, settings.night.top_n):
        print(f"{row['posts']:,} posts: {row['user_seconds'] / row['posts'] * 1e9:.2f} ns a pair, "
              f"{row['chunk_seconds']:.2f} s a chunk, compiled in {row['compile_seconds']:.1f} s, "
              f"{row['forest_bytes'] / MIB:.1f} MiB")  # fmt: skip
        figures["scorer"].append(row)
    return figures


def make_writing(dataset: Dataset, settings: Settings) -> Writing:
    """Train the test variant as the night does, and compile it."""
    recipe = choose_recipe(MODELS[TEST], dataset, settings).recipe
    model = fit(MODELS[TEST], dataset, windows=dataset.windows, recipe=recipe, settings=settings)
    none, n = np.empty(0, np.int64), settings.night.top_n
    network = dataset.network
    compiled = model.compile(network, dataset.now, none)
    _, sample = score_sample(compiled, n, len(network.users), settings)
    counter = ListCounter.of(len(network.posts), none, n, sample)
    return Writing(compiled, n, FeedRules(None, None), counter, ListEncoder(network.post_ids))


def make_ways(stores: Stores, clusters: list[DaskProcesses]) -> list[Way]:
    """Return the four ways; clusters have one and two workers."""
    cores = os.cpu_count() or 1
    ways = []
    for threads in (1, 2):
        night = replace(stores.settings.night, threads=threads)
        settings = replace(stores.settings, night=night)
        cluster = Cluster(1, threads=threads, cores=cores)
        ways.append(Way(_count(threads, "thread"), replace(stores, settings=settings), cluster, None))
    for workers, processes in enumerate(clusters, 1):
        dask = replace(stores.settings.dask, scheduler=processes.address)
        settings = replace(stores.settings, dask=dask)
        cluster = Cluster(workers, cores=cores)
        ways.append(
            Way(_count(workers, "Dask worker"), replace(stores, settings=settings), cluster, processes)
        )
    return ways


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def measure(ways: list[Way], writing: Writing, dataset: Dataset) -> dict[str, Any]:
    """Measure all ways and the unit costs; print tables and return all figures."""
    ids = dataset.network.user_ids
    users, posts = len(ids), len(dataset.network.posts)
    print(f"{machine()}; {users:,} users x {posts:,} posts, N = {writing.n}, medians of {ROUNDS} rounds")
    timed = time_in_turn(ways, writing, ids)
    sizes = measure_bytes(writing, ids)
    two_workers = ways[-1]
    assert two_workers.processes is not None
    tasks = measure_tasks(two_workers.stores.executor, two_workers.processes, two_workers.stores.redis)
    keys = two_workers.stores.keys
    of_lists = measure_scoring(writing, ids)
    of_lists |= measure_writing(two_workers.stores.redis, keys, RUN_ID, writing, ids)
    costs = make_costs(tasks, of_lists, sizes)
    with redis_cluster() as client:
        of_cluster = measure_writing(client, keys, RUN_ID, writing, ids)
    less, more = (repeat_users(writing, users, times * users) for times in (LESS, MORE))
    print_head(COLUMNS)
    rows = []
    for way in reversed(ways):  # threads last: what they leave in this process is not the driver's
        of_way = costs if way.processes else costs.without_cluster()
        predicted = simulate(of_way, way.cluster, users, users_per_task(users, way.cluster.slots))
        row = {"way": way.name, "workers": way.cluster.workers, "threads": way.cluster.threads}
        row |= timed[way.name] | {"predicted_seconds": predicted.seconds}
        row["predicted_core_seconds"] = predicted.core_seconds
        row |= sample_memory(way, less, np.arange(LESS * users))
        row["driver_mib_more"] = sample_memory(way, more, np.arange(MORE * users))["driver_mib"]
        rows.insert(0, row)
        print_row(COLUMNS, {**row, "checksum": row["checksum"][:12]})
    result = {
        "machine": machine(),
        "users": users,
        "less_users": LESS * users,
        "more_users": MORE * users,
        "posts": posts,
        "n": writing.n,
        "value_bytes": measure_values(ways[0], writing, ids),
        "ways": rows,
        "tasks": tasks,
        "costs": asdict(costs),
        "redis_cluster_costs": of_cluster,
        "driver_bytes_per_user": measure_driver(writing.compiled, dataset),
        "candidates": measure_candidates(writing, ways[0].stores.settings),
    }
    print(
        json.dumps(
            {
                name: result[name]
                for name in ("tasks", "costs", "redis_cluster_costs", "driver_bytes_per_user")
            },
            indent=1,
        )
    )
    print(json.dumps(result["candidates"]))
    return result


def time_in_turn(ways: list[Way], writing: Writing, ids: Int64s) -> dict[str, dict[str, Any]]:
    """Time each way once a round, after one round that is not timed.

    Raises
    ------
    OvernightError
        Lists differ.
    """
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    used: dict[str, list[dict[str, float]]] = {way.name: [] for way in ways}
    checksums: dict[str, set[str]] = {way.name: set() for way in ways}
    for timed in range(-1, ROUNDS):
        for way in ways:
            before, started = way.read_clocks(), time.perf_counter()
            checksums[way.name].add(way.write(writing, ids))
            if timed >= 0:
                seconds[way.name].append(time.perf_counter() - started)
                used[way.name].append(difference(way.read_clocks(), before))
            way.stores.redis.flushall()
    if len(set.union(*checksums.values())) != 1:
        raise OvernightError(f"the ways wrote different lists: {checksums}")
    return {
        name: {
            "seconds": median(of_way),
            "fastest": min(of_way),
            "slowest": max(of_way),
            "users_per_second": len(ids) / median(of_way),
            "core_seconds": median(sum(each.values()) for each in used[name]),
            "checksum": min(checksums[name]),
        }
        for name, of_way in seconds.items()
    }


def repeat_users(writing: Writing, users: int, count: int) -> Writing:
    """Return what is written of `count` users: the network's users, again and again."""
    rows = np.arange(count) % users
    return replace(writing, compiled=writing.compiled.of_users(rows))


def sample_memory(way: Way, writing: Writing, ids: Int64s) -> dict[str, float]:
    """Write lists while memory is watched.

    Returns
    -------
    How far the driver's resident memory rose, the largest of a worker's, and the largest sum of what Redis
    held for its clients, in MiB.
    """
    ctypes.CDLL(None).malloc_trim(0)  # or memory that was freed would count as there before
    workers = [psutil.Process()] if way.processes is None else way.processes.processes()["workers"]
    resident = psutil.Process().memory_info().rss
    for process in (*workers, psutil.Process()):
        reset_peak(process.pid)
    with watch_buffers(way.stores.redis) as buffers:
        way.write(writing, ids)
    way.stores.redis.flushall()
    return {
        "driver_mib": (read_peak(os.getpid()) - resident) / MIB,
        "worker_mib": max(read_peak(worker.pid) for worker in workers) / MIB,
        "redis_buffer_mib": max(buffers) / MIB,
    }


def reset_peak(process_id: int) -> None:
    """Let Linux measure the largest resident memory of a process from now on."""
    Path(f"/proc/{process_id}/clear_refs").write_text("5", encoding="ascii")


def read_peak(process_id: int) -> int:
    """Return the largest resident memory of a process since then, in bytes."""
    status = Path(f"/proc/{process_id}/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


@contextmanager
def watch_buffers(client: redis.Redis) -> Iterator[list[int]]:
    """Sample the bytes that Redis holds for its clients until the end of the block."""
    ended, found = threading.Event(), [0]

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            clients: Any = client.client_list()
            found.append(sum(int(each["tot-mem"]) for each in clients))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield found
    finally:
        ended.set()
        watching.join()


def measure_values(way: Way, writing: Writing, ids: Int64s) -> float:
    """Return the mean bytes of a list, as it is written."""
    written = writing.write(way.stores, RUN_ID, ids).written
    way.stores.redis.flushall()
    return written.value_bytes / written.lists


def measure_driver(compiled: CompiledModel, dataset: Dataset) -> dict[str, float]:
    """Return the bytes a user that the driver keeps while lists are written."""
    network, now = dataset.network, dataset.now
    kept = {
        "factors": () if compiled.factors is None else compiled.factors.users,
        "likes": now.likes,
        "ids and columns": network.users,
        "counts": (now.user_counts, now.of_groups),
    }
    return {name: count_bytes(value) / len(network.users) for name, value in kept.items()}


def count_bytes(value: Any) -> int:
    """Return the bytes of all arrays in a value; of objects in an array, the references to them."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, pd.DataFrame):
        return int(value.memory_usage().sum())
    if isinstance(value, dict):
        return sum(count_bytes(each) for each in value.values())
    if isinstance(value, list | tuple):
        return sum(count_bytes(each) for each in value)
    if is_dataclass(value):
        return sum(count_bytes(getattr(value, field.name)) for field in fields(value))
    return 0


def measure_candidates(writing: Writing, settings: Settings) -> list[dict[str, float]]:
    """Measure how much of exact lists is left if only the posts with the highest dot products are scored."""
    compiled, n = writing.compiled, writing.n
    assert compiled.factors is not None
    rows, lists = score_sample(compiled, n, len(compiled.factors.users), settings)
    dots = compiled.factors.users[rows] @ compiled.factors.posts.T
    left_out = compiled.left_out.of_rows(rows)
    dots[left_out.users, left_out.posts] = -np.inf
    ranks = np.argsort(np.argsort(-dots, axis=1), axis=1)
    of_listed = np.take_along_axis(ranks, np.maximum(lists.posts, 0), axis=1)
    listed = lists.posts >= 0
    found = []
    for share in CANDIDATE_SHARES:
        kept = (of_listed < round(share * dots.shape[1])) & listed
        found.append({
            "share": share,
            "kept": float(kept.sum() / listed.sum()),
            "kept_of_first_ten": float(kept[:, :10].sum() / listed[:, :10].sum()),
            "lists_unchanged": float((kept == listed).all(axis=1).mean()),
        })  # fmt: skip
    return found


if __name__ == "__main__":
    main()
