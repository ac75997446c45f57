"""What the tests of a failing batch share: a network with a run live, and whether it stays as it was."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import redis
import sqlalchemy as sa

from tests.support.batch_support import (
    DEADLINE_SECONDS,
    live_values,
    make_engine,
    make_network,
    query,
    run_here,
    runs_with_keys,
    started_batch,
    wait_until,
)
from tests.support.forked_batch import Forked
from tests.support.serving_support import ask, recommend, serving, settings_for

MANY_USERS = 4_000
"""So many that writing their lists takes a moment, in which things can be made to fail."""

KNOWN_USERS = (1, 7, 60)
UNKNOWN_USER = 10**6

LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ [a-z.]+: ")

WAITING = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'overnight%' AND wait_event = 'relation'
"""
"""Connections of runs that wait for a table."""

_database_numbers = itertools.count()


@dataclass(frozen=True)
class LiveNetwork:
    """Where a network with a live run is, and what is live.

    Attributes
    ----------
    values
        The pointers and every key of the runs they name, with their values.
    answers
        What serving answers to some known users, an unknown one, and for the popular posts.
    """

    database_url: str
    redis_url: str
    model_dir: Path
    values: dict[str, str]
    answers: list[Any]

    @classmethod
    def of(cls, database_url: str, redis_url: str, model_dir: Path) -> LiveNetwork:
        """Remember what is live now; something must be."""
        found = cls(database_url, redis_url, model_dir, _values(redis_url), _answers(redis_url))
        assert any(name.endswith(":manifest") for name in found.values)
        return found

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command line in this process; `environment` overrides."""
        return run_here(*arguments, **(self.places | environment))

    @property
    def places(self) -> dict[str, Any]:
        """Where everything is, as arguments of `run_batch` and its like."""
        return {
            "database_url": self.database_url,
            "redis_url": self.redis_url,
            "model_dir": self.model_dir,
        }

    def in_database(self, database_url: str) -> LiveNetwork:
        """Return the same with another database."""
        return replace(self, database_url=database_url)

    def with_models_in(self, model_dir: Path) -> LiveNetwork:
        """Return the same with another folder for models."""
        return replace(self, model_dir=model_dir)

    @property
    def runs(self) -> set[str]:
        """The runs that are live."""
        return {value for name, value in self.values.items() if ":live:" in name}

    def check_live(self) -> None:
        """Check that what was live is live, complete and served as before."""
        assert _values(self.redis_url) == self.values
        assert _answers(self.redis_url) == self.answers

    def check_unchanged(self) -> None:
        """Check that what was live is live, and that no other run has keys."""
        self.check_live()
        with redis.Redis.from_url(self.redis_url, decode_responses=True) as client:
            assert runs_with_keys(client) == self.runs

    @contextmanager
    def held_while_loading(self) -> Iterator[Forked]:
        """Start a run, and yield its process while another's lock keeps it waiting for its rows."""
        with (
            make_engine(self.database_url).begin() as connection,
            started_batch("run", "--variant", "control", **self.places) as process,
        ):
            connection.execute(sa.text("LOCK TABLE recs.interactions IN ACCESS EXCLUSIVE MODE"))
            wait_until(lambda: query(self.database_url, WAITING))
            yield process

    @contextmanager
    def stopped_mid_publish(self, client: redis.Redis) -> Iterator[tuple[Forked, str]]:
        """Start a run and stop it (SIGSTOP) when it has written lists, but not all; yield process and run.

        The least memory budget makes it score in several chunks, and write in between.
        """
        before = int(client.dbsize())
        places = self.places | {"OVERNIGHT_MEMORY_BUDGET_MIB": "16"}
        with started_batch("run", "--variant", "control", **places) as process:
            wait_until(lambda: int(client.dbsize()) > before + 500)
            os.kill(process.pid, signal.SIGSTOP)
            (run_id,) = runs_with_keys(client) - self.runs
            assert int(client.dbsize()) < before + MANY_USERS
            yield process, run_id

    def fails(self, *arguments: str, code: int = 1, says: str, **environment: str) -> None:
        """Run the command line; check that it fails in one line and leaves what is live alone."""
        check_error(self.run(*arguments, **environment), code, says)
        self.check_unchanged()

    def last_failure(self) -> str:
        """Return why the newest run failed, as the ledger has it; it must have failed."""
        newest = "SELECT state, reason FROM recs.runs ORDER BY started_at DESC LIMIT 1"
        ((state, reason),) = query(self.database_url, newest)
        assert state == "failed"
        return str(reason)


@contextmanager
def network_with_a_live_run(
    server: sa.URL, redis_url: str, model_dir: Path, **size: int
) -> Iterator[LiveNetwork]:
    """Make a network of that size (see `make_network`) in a new database, and a run that is live."""
    with copied_database(server) as database_url:
        make_network(database_url, **size)
        done = run_here("run", database_url=database_url, redis_url=redis_url, model_dir=model_dir)
        assert done.returncode == 0, done.stderr
        yield LiveNetwork.of(database_url, redis_url, model_dir)


@contextmanager
def copy_of(live: LiveNetwork, server: sa.URL) -> Iterator[LiveNetwork]:
    """Yield the same live run over a copy of its database."""
    with copied_database(server, sa.make_url(live.database_url).database) as database_url:
        yield live.in_database(database_url)


@contextmanager
def copied_night(
    live: LiveNetwork, keys: dict[bytes, bytes], server: sa.URL, model_dir: Path
) -> Iterator[LiveNetwork]:
    """Yield the same live run over a copy of its database and of its models, with its keys in Redis again."""
    restore(live.redis_url, keys)
    shutil.copytree(live.model_dir, model_dir)
    with copy_of(live, server) as copy:
        yield copy.with_models_in(model_dir)


def dump(redis_url: str) -> dict[bytes, bytes]:
    """Return every key as Redis serialises it."""
    with redis.Redis.from_url(redis_url) as client, client.pipeline(transaction=False) as pipe:
        names = sorted(client.scan_iter(count=5_000))
        for name in names:
            pipe.dump(name)
        return dict(zip(names, pipe.execute(), strict=True))


def restore(redis_url: str, dumped: dict[bytes, bytes]) -> None:
    """Empty a Redis and fill it with what was dumped."""
    with redis.Redis.from_url(redis_url) as client, client.pipeline(transaction=False) as pipe:
        client.flushall()
        for name, value in dumped.items():
            pipe.restore(name, 0, value)
        pipe.execute()


def ended(process: Forked | subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait until a process has ended, and return how."""
    out, errors = process.communicate(timeout=DEADLINE_SECONDS)
    return subprocess.CompletedProcess((), process.returncode, out, errors)


def check_error(done: subprocess.CompletedProcess[str], code: int, says: str) -> None:
    """Check the exit code, and that stderr ends with the one line that holds `says`, without a traceback."""
    *logged, last = done.stderr.rstrip("\n").split("\n")
    assert last.startswith("error: "), done.stderr
    assert says in last, last
    assert [line for line in logged if not LOG_LINE.match(line)] == []
    assert done.returncode == code


@contextmanager
def copied_database(server: sa.URL, template: str | None = None) -> Iterator[str]:
    """Make a database, as a copy of another's (its name) if given, and drop it afterwards; yield its URL."""
    name = f"copy_{next(_database_numbers)}"
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template or 'template1'}")
    try:
        yield server.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def _values(redis_url: str) -> dict[str, str]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        return live_values(client)


def _answers(redis_url: str) -> list[Any]:
    with serving(settings_for(redis_url)) as app:
        found = [recommend(app, user) for user in (*KNOWN_USERS, UNKNOWN_USER)]
        found.append(ask(app, "/posts/popular"))
    return [{**answer, "age_seconds": None} for answer in found]
