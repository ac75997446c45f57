"""Helpers for tests of the batch: a small network in Postgres, the command line, the live runs."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import redis
import sqlalchemy as sa

from batch.cli import main
from batch.context import Stores
from batch.loading.cohorts import Groupings, by_topic
from batch.loading.network import Network
from contract.codec import Ranked, decode_list
from contract.experiment import VARIANTS
from contract.ids import IdKind, IdKinds
from contract.keys import Keys
from contract.settings import Settings
from demo.postgres import make_engine
from tests.support.forked_batch import Forked, Prepare

ROOT = Path(__file__).resolve().parents[2]
KEYS = Keys()

FIRST_DAY = datetime(2021, 10, 1, tzinfo=UTC)
DAYS = 30
CITIES = ("Omsk", "Perm", "Tver")
TOPICS = ("business", "covid", "movie", "sport")
WORDS = {
    "business": "market shares bank profit trade",
    "covid": "mask virus health hospital vaccine",
    "movie": "film actor scene director cinema",
    "sport": "match goal team coach league",
}
DEADLINE_SECONDS = 120

TABLES = """
    CREATE SCHEMA recs;
    CREATE TABLE recs.users (user_id bigint, age integer, city text, subscribed boolean);
    CREATE TABLE recs.posts (post_id bigint, topic text, text text, created_at timestamptz);
    CREATE TABLE recs.interactions (
        user_id bigint, post_id bigint, action text, happened_at timestamptz
    );
"""


def make_network(
    database_url: str, users: int = 60, posts: int = 40, seed: int = 1, *, interactions: int = 2_500
) -> None:
    """Create the schema `recs` with a small network, in tables without constraints.

    Users 1 to `users`, posts 101 to 100 + `posts`, 30 days of views. A view is
    followed a minute later by a like with a probability that depends on the
    user's city and the post's topic, so that there is a signal to learn. About a
    fifth of the interactions are likes. The network depends on the arguments only.
    """
    engine = make_engine(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text(TABLES))
        driver: Any = connection.connection.cursor()
        with driver as cursor:
            for table, rows in _rows(users, posts, seed, interactions).items():
                copy = f"COPY recs.{table} FROM STDIN WITH (FORMAT csv, HEADER true)"
                cursor.copy_expert(copy, io.StringIO(rows))
    engine.dispose()


ODD_WORDS = ("a b", "50 %", '"hi"', "back\\slash", "path/to", "x:y", "ü", "\U0001f600", "it''s", "a,b{c}")


def sql_id(kind: IdKind, number: str | int) -> str:
    """Return SQL that makes an id of a kind from a whole number; text needs every kind of escape."""
    if kind is IdKind.TEXT:
        return f"split_part('{'|'.join(ODD_WORDS)}', '|', ({number} % {len(ODD_WORDS)} + 1)::int) || {number}"
    return f"md5({number}::text)::uuid" if kind is IdKind.UUID else str(number)


def change_ids(database_url: str, kinds: IdKinds) -> None:
    """Change the ids of the network of `make_network` to ids of other kinds."""
    for table, column, kind in (
        ("users", "user_id", kinds.users),
        ("interactions", "user_id", kinds.users),
        ("posts", "post_id", kinds.posts),
        ("interactions", "post_id", kinds.posts),
    ):
        sql_type = {IdKind.NUMBER: "bigint", IdKind.UUID: "uuid", IdKind.TEXT: "text"}[kind]
        using = sql_id(kind, column)
        execute(database_url, f"ALTER TABLE recs.{table} ALTER {column} TYPE {sql_type} USING {using}")


@cache
def _rows(users: int, posts: int, seed: int, interactions: int) -> dict[str, str]:
    """Return the rows of each table as CSV; cached per process."""
    random = np.random.default_rng(seed)
    cities, topics = random.integers(0, len(CITIES), users), random.integers(0, len(TOPICS), posts)
    user_rows = pd.DataFrame(
        {
            "user_id": np.arange(1, users + 1),
            "age": random.integers(14, 80, users),
            "city": np.array(CITIES)[cities],
            "subscribed": random.random(users) < 0.3,
        }
    )
    topic_names = np.array(TOPICS)[topics]
    days = pd.to_timedelta(random.uniform(-60, DAYS - 10, posts), unit="D")
    post_rows = pd.DataFrame(
        {
            "post_id": np.arange(101, 101 + posts),
            "topic": topic_names,
            "text": [f"{_sentence(random, topic)} {number}" for number, topic in enumerate(topic_names)],
            "created_at": pd.Timestamp(FIRST_DAY) + days.floor("s"),
        }
    )
    actions = _actions(random, cities, topics, interactions)
    tables = {"users": user_rows, "posts": post_rows, "interactions": actions}
    return {table: rows.to_csv(index=False) for table, rows in tables.items()}


def _actions(random: np.random.Generator, cities: Any, topics: Any, interactions: int) -> pd.DataFrame:
    views = round(interactions * 0.8)
    user, post = random.integers(0, cities.size, views), random.integers(0, topics.size, views)
    taste = np.array([[0.05, 0.1, 0.2, 0.75], [0.1, 0.75, 0.05, 0.2], [0.75, 0.1, 0.2, 0.05]])
    liked = random.random(views) < taste[cities[user], topics[post]]
    seconds = pd.to_timedelta(np.sort(random.uniform(0, DAYS * 86_400, views)), unit="s")
    viewed = pd.DataFrame({"user_id": user + 1, "post_id": post + 101, "action": "view"})
    viewed["happened_at"] = pd.Timestamp(FIRST_DAY) + seconds.floor("s")
    likes = viewed[liked].assign(action="like", happened_at=viewed["happened_at"] + pd.Timedelta("1min"))
    actions: pd.DataFrame = pd.concat([viewed, likes], ignore_index=True)
    return actions


def _sentence(random: np.random.Generator, topic: str) -> str:
    return " ".join(random.choice(WORDS[topic].split(), size=6))


def topics_of(network: Network) -> Groupings:
    """Return the grouping by topic alone."""
    return Groupings.of(topic=by_topic(network.posts))


def execute(database_url: str, *statements: str) -> None:
    """Execute statements, each in its own transaction."""
    engine = make_engine(database_url)
    for statement in statements:
        with engine.begin() as connection:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def query(database_url: str, statement: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    with make_engine(database_url).connect() as connection:
        rows = connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
        return [tuple(row) for row in rows]


def run_batch(
    *arguments: str, database_url: str, redis_url: str, model_dir: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m batch` in a new Python process, on one thread; `environment` overrides variables.

    The start takes seconds; `run_here` and `run_forked` avoid it.
    """
    return subprocess.run(
        [sys.executable, "-m", "batch", *arguments],
        cwd=ROOT,
        env=_environment(database_url, redis_url, model_dir) | environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


def run_forked(
    *arguments: str, database_url: str, redis_url: str, model_dir: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a forked process, see `start_batch`."""
    servers: dict[str, Any] = {"database_url": database_url, "redis_url": redis_url, "model_dir": model_dir}
    with start_batch(*arguments, **servers, **environment) as process:
        out, errors = process.communicate(DEADLINE_SECONDS)
        code = process.wait()
    return subprocess.CompletedProcess(arguments, code, out, errors)


def run_here(
    *arguments: str, database_url: str, redis_url: str, model_dir: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process."""
    out, errors = io.StringIO(), io.StringIO()
    variables = _environment(database_url, redis_url, model_dir) | environment
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with (
        patch.dict(os.environ, variables, clear=True),
        patch.object(sys, "argv", ["batch", *arguments]),
        redirect_stdout(out),
        redirect_stderr(errors),
        pytest.raises(SystemExit) as raised,
    ):
        main()
    root.handlers[:] = handlers
    root.setLevel(level)
    return subprocess.CompletedProcess(
        arguments, int(str(raised.value.code)), out.getvalue(), errors.getvalue()
    )


@contextmanager
def start_batch(
    *arguments: str,
    database_url: str,
    redis_url: str,
    model_dir: Path,
    prepare: Prepare | None = None,
    **environment: str,
) -> Iterator[Forked]:
    """Start `python -m batch` and yield the process; kill it at the end if it still runs.

    The process is a fork of one that has all modules imported, which saves
    seconds; `run_batch` and `start_process` start a new Python. `prepare` is
    called in the process first.
    """
    variables = _environment(database_url, redis_url, model_dir) | environment
    with Forked(arguments, variables, prepare) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def start_process(
    *arguments: str, database_url: str, redis_url: str, model_dir: Path, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Start `python -m batch` in a new Python process, as a shell does, and yield the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "batch", *arguments],
        cwd=ROOT,
        env=_environment(database_url, redis_url, model_dir) | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _environment(database_url: str, redis_url: str, model_dir: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("OVERNIGHT_")}
    return own | {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "OVERNIGHT_MODEL_DIR": str(model_dir),
        "OVERNIGHT_THREADS": "1",
    }


def live_run(client: redis.Redis, variant: str = "control") -> str | None:
    """Return the run that the variant's pointer names (the client answers in text)."""
    found = client.get(KEYS.live(variant))
    return None if found is None else str(found)


def live_lists(client: redis.Redis, variant: str = "control") -> dict[int, Ranked]:
    """Return each user's list in the live run, `[(post_id, score), ...]`, best first; none if no run is live.

    The client answers in text.
    """
    run_id = live_run(client, variant)
    if run_id is None:
        return {}
    names = sorted(client.scan_iter(match=KEYS.run_pattern(run_id), count=5_000))
    start = KEYS.user(run_id, 0)[:-1]
    users = [name for name in names if name.startswith(start)]
    values: Any = client.mget(users) if users else []
    return {
        int(name.removeprefix(start)): decode_list(value) for name, value in zip(users, values, strict=True)
    }


def live_values(client: redis.Redis) -> dict[str, str]:
    """Return every live pointer and every key of the runs they name, with their values."""
    pointers = {KEYS.live(variant): live_run(client, variant) for variant in VARIANTS}
    names = [pointer for pointer, run_id in pointers.items() if run_id]
    for run_id in filter(None, pointers.values()):
        names += sorted(client.scan_iter(match=KEYS.run_pattern(run_id), count=5_000))
    values: Any = client.mget(names) if names else []
    return dict(zip(names, values, strict=True))


def runs_with_keys(client: redis.Redis) -> set[str]:
    """Return the ids of all runs with keys, with or without a manifest."""
    names = client.scan_iter(match=KEYS.run_pattern("*"), count=5_000)
    return {name.split(":")[2] for name in names}


def wait_until(condition: Callable[[], Any], seconds: float = DEADLINE_SECONDS) -> None:
    """Poll until the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.005)


def settled_memory(client: redis.Redis) -> int:
    """Return the bytes of memory that a server uses, once it has freed what was deleted before."""
    wait_until(lambda: client.info("memory")["lazyfree_pending_objects"] == 0)
    memory: Any = client.info("memory")
    return int(memory["used_memory"])


def ledger_stores(engine: sa.Engine, actor: str = "a test", key_prefix: str = "recs") -> Stores:
    """Return stores for functions of the ledger, which do not use Redis."""
    return Stores(Settings.of(key_prefix=key_prefix), engine, redis.Redis(), actor)
