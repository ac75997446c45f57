"""Measures what serving was chosen to run on, beside what it might have been, in one run.

The worker classes of gunicorn with several numbers of threads, and hiredis
beside redis-py's own parser, by wrk on the route that a feed asks; then the
JSON libraries on real answers. Needs live lists in `REDIS_URL`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import timeit
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import orjson
import redis

from benchmarks.load import Measured, find_wrk, gunicorn
from benchmarks.report import Columns, machine, print_head, print_row
from benchmarks.serving import OUR_CONF, USERS, arguments, live_run, write_users
from contract.codec import decode_list, decode_object
from contract.keys import Keys
from contract.settings import Settings

SHIPPED = "gthread, 4 threads"
WORKERS: dict[str, tuple[str, ...]] = {
    SHIPPED: (),
    "gthread, 1 thread": ("--threads", "1"),
    "gthread, 2 threads": ("--threads", "2"),
    "gthread, 8 threads": ("--threads", "8"),
    "sync": ("--threads", "1", "--worker-class", "sync"),
    "4 threads, without hiredis": (),
}
COLUMNS: Columns = {
    "way": ("way", ">26"),
    "rps": ("req/s", "8,.0f"),
    "ratio": ("ratio", "6.2f"),
    "p50_ms": ("p50 ms", "7.2f"),
    "p99_ms": ("p99 ms", "7.2f"),
    "worker_us": ("worker us", "9.0f"),
}
CALLS = 2_000


def main() -> None:
    """Measure and print two tables."""
    wrk, asked, settings = find_wrk(), arguments(), Settings.from_environment()
    keys = Keys(settings.key_prefix)
    with redis.Redis.from_url(settings.redis_url, decode_responses=True) as client, ExitStack() as stack:
        run_id = live_run(client, keys, asked.limit_users)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_users(client, keys, run_id, folder / "users")
        # In front of the real one: redis-py then takes its own parser.
        (folder / "hiredis.py").write_text("raise ImportError\n", encoding="utf-8")
        servers = {}
        for way, options in WORKERS.items():
            path = {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])} if "without" in way else {}
            server = gunicorn(OUR_CONF, "serving.wsgi:app", "/readyz", options, **path)
            servers[way] = stack.enter_context(server)
        rounds: dict[str, list[Measured]] = {way: [] for way in servers}
        for _ in range(asked.rounds):
            for way, server in servers.items():
                found = server.load(wrk, USERS, folder / "users", asked.connections, asked.seconds)
                rounds[way].append(found)
        answers = answers_like(client, keys, run_id)
    print(f"{machine()}; {settings.workers} workers, {USERS}, medians of {asked.rounds} rounds")
    print_head(COLUMNS)
    for way, found_of in rounds.items():
        row: dict[str, Any] = {"way": way}
        row["ratio"] = median(a.rps / b.rps for a, b in zip(found_of, rounds[SHIPPED], strict=True))
        for name in ("rps", "p50_ms", "p99_ms", "worker_us"):
            row[name] = median(getattr(one, name) for one in found_of)
        print_row(COLUMNS, row)
    print_libraries(answers)


def answers_like(client: redis.Redis, keys: Keys, run_id: str) -> dict[str, dict[str, Any]]:
    """Make answers of the two routes from the popular list, as long as those of a feed."""
    posts = decode_list(str(client.get(keys.popular(run_id))))[:5]
    texts = [decode_object(str(client.hget(keys.posts, str(post)))) for post, _ in posts]
    ranked = [{"post_id": post, "score": score, "rank": rank} for rank, (post, score) in enumerate(posts, 1)]
    carried = [{"id": post, **text} for (post, _), text in zip(posts, texts, strict=True)]
    return {
        "5 posts": {"user_id": 42, "run_id": run_id, "source": "personal", "recommendations": ranked},
        "5 posts with texts": {"exp_group": "control", "recommendations": carried},
    }


def print_libraries(answers: dict[str, dict[str, Any]]) -> None:
    """Print what each library takes to write an answer; the fastest of seven tries."""
    encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
    ways = {"json": lambda fields: encoder.encode(fields).encode(), "orjson": orjson.dumps}
    for name, fields in answers.items():
        for way, write in ways.items():
            seconds = min(timeit.repeat(partial(write, fields), number=CALLS, repeat=7))
            print(f"{name:>26} {way:>8} {seconds / CALLS * 1e6:6.1f} us, {len(write(fields)):,} bytes")


if __name__ == "__main__":
    main()
