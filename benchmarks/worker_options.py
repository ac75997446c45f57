"""Compare the worker options of serving with the alternatives.

wrk measures gunicorn's worker classes, several numbers of threads, and hiredis
compared with redis-py's own parser, on the route of the feed; then parts of a
request are timed in this process. Needs live lists in `REDIS_URL`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import timeit
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import orjson
import redis

from benchmarks.load import LoadResult, find_wrk, gunicorn
from benchmarks.report import Columns, machine, print_head, print_row
from benchmarks.serving import OUR_CONF, USERS, live_run, parse_arguments, write_users
from contract.codec import decode_list, decode_object
from contract.keys import Keys
from contract.settings import Settings
from serving.list_store import open_redis
from serving.tuned.redis_get import RedisGet

DEFAULT = "16 threads"
OPTIONS: dict[str, tuple[str, ...]] = {
    DEFAULT: (),
    "4 threads": ("--threads", "4"),
    "1 thread": ("--threads", "1"),
    "gunicorn's own gthread, 16": ("--worker-class", "gthread"),
    "sync": ("--threads", "1", "--worker-class", "sync"),
    "16 threads, without hiredis": (),
}
COLUMNS: Columns = {
    "way": ("option", ">27"),
    "rps": ("req/s", "8,.0f"),
    "ratio": ("ratio", "6.2f"),
    "p50_ms": ("p50 ms", "7.2f"),
    "p99_ms": ("p99 ms", "7.2f"),
    "worker_us": ("worker us", "9.0f"),
}
PARTS: Columns = {"part": ("part", ">14"), "way": ("method", ">12"), "us": ("us", "8.1f")}
CALLS = 500


def main() -> None:
    """Measure and print two tables."""
    wrk, options, settings = find_wrk(), parse_arguments(), Settings.from_environment()
    keys = Keys(settings.stores.key_prefix)
    with (
        redis.Redis.from_url(settings.stores.redis_url, decode_responses=True) as client,
        ExitStack() as stack,
    ):
        run_id = live_run(client, keys, options.limit_users)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_users(client, keys, run_id, folder / "users")
        # Found before the real hiredis, so that redis-py uses its own parser.
        (folder / "hiredis.py").write_text("raise ImportError\n", encoding="utf-8")
        servers = {}
        for way, gunicorn_options in OPTIONS.items():
            path = {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])} if "without" in way else {}
            server = gunicorn(OUR_CONF, "serving.wsgi:app", "/readyz", gunicorn_options, **path)
            servers[way] = stack.enter_context(server)
        rounds: dict[str, list[LoadResult]] = {way: [] for way in servers}
        for _ in range(options.rounds):
            for way, server in servers.items():
                result = server.load(
                    wrk, USERS, folder / "users", connections=options.connections, seconds=options.seconds
                )
                rounds[way].append(result)
        parts = time_parts(client, keys, run_id, settings)
    print(f"{machine()}; {settings.serving.workers} workers, {USERS}, medians of {options.rounds} rounds")
    print_head(COLUMNS)
    for way, results in rounds.items():
        row: dict[str, Any] = {"way": way}
        row["ratio"] = median(a.rps / b.rps for a, b in zip(results, rounds[DEFAULT], strict=True))
        for name in ("rps", "p50_ms", "p99_ms", "worker_us"):
            row[name] = median(getattr(each, name) for each in results)
        print_row(COLUMNS, row)
    print_head(PARTS)
    for row in parts:
        print_row(PARTS, row)


def time_parts(client: redis.Redis, keys: Keys, run_id: str, settings: Settings) -> list[dict[str, Any]]:
    """Time parts of a request, each as it is done and an alternative: the fastest of seven tries."""
    serving_client = open_redis(settings, 2.0)
    key = client.randomkey()
    while not key or not key.startswith(keys.user(run_id, 0)[:-1]):
        key = client.randomkey()
    stored, encoder = serving_client.get(key), json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
    posts = decode_list(stored)[:5]
    texts = [decode_object(str(client.hget(keys.posts, str(post)))) for post, _ in posts]
    ranked = [{"post_id": post, "score": score, "rank": rank} for rank, (post, score) in enumerate(posts, 1)]
    plain = {"user_id": 42, "run_id": run_id, "source": "personal", "recommendations": ranked}
    with_texts = {"exp_group": "control", "recommendations": texts}
    ways: dict[tuple[str, str], Callable[[], object]] = {
        ("GET", "Redis.get"): partial(serving_client.get, key),
        ("GET", "RedisGet.get"): partial(RedisGet(serving_client).get, key),
        ("decode a list", "json"): partial(json.loads, stored),
        ("decode a list", "orjson"): partial(orjson.loads, stored),
        ("decode a list", "and check it"): partial(decode_list, stored),
        ("write 5 posts", "json"): partial(encoder.encode, plain),
        ("write 5 posts", "orjson"): partial(orjson.dumps, plain),
        ("write 5 texts", "json"): partial(encoder.encode, with_texts),
        ("write 5 texts", "orjson"): partial(orjson.dumps, with_texts),
    }
    rows = []
    for (part, way), call in ways.items():
        seconds = min(timeit.repeat(call, number=CALLS, repeat=7)) / CALLS
        rows.append({"part": part, "way": way, "us": seconds * 1e6})
    serving_client.close()
    return rows


if __name__ == "__main__":
    main()
