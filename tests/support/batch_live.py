"""Helpers for tests of batch failures: a network with a live run, and checks that it is unchanged."""

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

from tests.support.batch import (
    DEADLINE_SECONDS,
    live_values,
    make_engine,
    make_network,
    query,
    run_here,
    runs_with_keys,
    start_batch,
    wait_until,
)
from tests.support.forked_batch import Forked
from tests.support.serving import ask, recommend, serving, settings_for

MANY_USERS = 4_000
"""Enough users that writing their lists takes long enough to inject failures."""

KNOWN_USERS = (1, 7, 60)
UNKNOWN_USER = 10**6

LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ [a-z.]+: ")

WAITING = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'overnight%' AND wait_event = 'relation'
"""
"""Connections of runs that wait for a table lock."""

_database_numbers = itertools.count()


@dataclass(frozen=True)
class LiveNetwork:
    """A network with a live run: its servers, and the live keys and answers.

    Attributes
    ----------
    values
        Key -> value of the pointers, and of all keys of the runs they name.
    answers
        Answers of serving for some known users, an unknown user, and the popular posts.
    """

    database_url: str
    redis_url: str
    model_dir: Path
    values: dict[str, str]
    answers: list[Any]

    @classmethod
    def of(cls, database_url: str, redis_url: str, model_dir: Path) -> LiveNetwork:
        """Record what is live now; at least one run must be."""
        found = cls(database_url, redis_url, model_dir, _values(redis_url), _answers(redis_url))
        assert any(name.endswith(":manifest") for name in found.values)
        return found

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command line in this process; `environment` overrides variables."""
        return run_here(*arguments, **(self.servers | environment))

    @property
    def servers(self) -> dict[str, Any]:
        """URLs and model folder, as arguments of `run_batch` and similar functions."""
        return {
            "database_url": self.database_url,
            "redis_url": self.redis_url,
            "model_dir": self.model_dir,
        }

    def in_database(self, database_url: str) -> LiveNetwork:
        """Return a copy with another database."""
        return replace(self, database_url=database_url)

    def with_models_in(self, model_dir: Path) -> LiveNetwork:
        """Return a copy with another folder for models."""
        return replace(self, model_dir=model_dir)

    @property
    def runs(self) -> set[str]:
        """Ids of the live runs."""
        return {value for name, value in self.values.items() if ":live:" in name}

    def check_live(self) -> None:
        """Check that the live keys and the answers of serving are unchanged."""
        assert _values(self.redis_url) == self.values
        assert _answers(self.redis_url) == self.answers

    def check_unchanged(self) -> None:
        """Check `check_live`, and that no other run has keys."""
        self.check_live()
        with redis.Redis.from_url(self.redis_url, decode_responses=True) as client:
            assert runs_with_keys(client) == self.runs

    @contextmanager
    def hold_while_loading(self) -> Iterator[Forked]:
        """Start a run, and yield its process while a table lock blocks its read of the interactions."""
        with (
            make_engine(self.database_url).begin() as connection,
            start_batch("run", "--variant", "control", **self.servers) as process,
        ):
            connection.execute(sa.text("LOCK TABLE recs.interactions IN ACCESS EXCLUSIVE MODE"))
            wait_until(lambda: query(self.database_url, WAITING))
            yield process

    @contextmanager
    def stop_mid_publish(self, client: redis.Redis) -> Iterator[tuple[Forked, str]]:
        """Start a run, stop it (SIGSTOP) after it has written some lists; yield process and run id.

        With the minimum memory budget it scores in several chunks, and writes after each.
        """
        before = int(client.dbsize())
        servers = self.servers | {"OVERNIGHT_MEMORY_BUDGET_MIB": "16"}
        with start_batch("run", "--variant", "control", **servers) as process:
            wait_until(lambda: int(client.dbsize()) > before + 500)
            os.kill(process.pid, signal.SIGSTOP)
            (run_id,) = runs_with_keys(client) - self.runs
            assert int(client.dbsize()) < before + MANY_USERS
            yield process, run_id

    def check_failure(self, *arguments: str, code: int = 1, message: str, **environment: str) -> None:
        """Run the command line; check that it fails with a one-line error and changes nothing live."""
        check_error(self.run(*arguments, **environment), code, message)
        self.check_unchanged()

    def last_failure(self) -> str:
        """Return the reason in the ledger for the failure of the newest run."""
        newest = "SELECT state, reason FROM recs.runs ORDER BY started_at DESC LIMIT 1"
        ((state, reason),) = query(self.database_url, newest)
        assert state == "failed"
        return str(reason)


@contextmanager
def make_live_network(server: sa.URL, redis_url: str, model_dir: Path, **size: int) -> Iterator[LiveNetwork]:
    """Create a network (see `make_network`) in a new database, and run a night; yield the live network."""
    with copy_database(server) as database_url:
        make_network(database_url, **size)
        done = run_here("run", database_url=database_url, redis_url=redis_url, model_dir=model_dir)
        assert done.returncode == 0, done.stderr
        yield LiveNetwork.of(database_url, redis_url, model_dir)


@contextmanager
def copy_network(live: LiveNetwork, server: sa.URL) -> Iterator[LiveNetwork]:
    """Yield the live run with a copy of its database."""
    with copy_database(server, sa.make_url(live.database_url).database) as database_url:
        yield live.in_database(database_url)


@contextmanager
def copy_night(
    live: LiveNetwork, keys: dict[bytes, bytes], server: sa.URL, model_dir: Path
) -> Iterator[LiveNetwork]:
    """Yield the live run with copies of its database and models, and with its keys restored in Redis."""
    restore(live.redis_url, keys)
    shutil.copytree(live.model_dir, model_dir)
    with copy_network(live, server) as copy:
        yield copy.with_models_in(model_dir)


def dump(redis_url: str) -> dict[bytes, bytes]:
    """Return key -> value of all keys, serialised by DUMP."""
    with redis.Redis.from_url(redis_url) as client, client.pipeline(transaction=False) as pipe:
        names = sorted(client.scan_iter(count=5_000))
        for name in names:
            pipe.dump(name)
        return dict(zip(names, pipe.execute(), strict=True))


def restore(redis_url: str, dumped: dict[bytes, bytes]) -> None:
    """Flush a Redis and restore the keys of `dump`."""
    with redis.Redis.from_url(redis_url) as client, client.pipeline(transaction=False) as pipe:
        client.flushall()
        for name, value in dumped.items():
            pipe.restore(name, 0, value)
        pipe.execute()


def wait_for_exit(process: Forked | subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait until a process has ended; return its exit code and output."""
    out, errors = process.communicate(timeout=DEADLINE_SECONDS)
    return subprocess.CompletedProcess((), process.returncode, out, errors)


def check_error(done: subprocess.CompletedProcess[str], code: int, message: str) -> None:
    """Check the exit code, and that that stderr ends with one error line, with `message` in it."""
    *logged, last = done.stderr.rstrip("\n").split("\n")
    assert last.startswith("error: "), done.stderr
    assert message in last, last
    assert [line for line in logged if not LOG_LINE.match(line)] == []
    assert done.returncode == code


@contextmanager
def copy_database(server: sa.URL, template: str | None = None) -> Iterator[str]:
    """Create a database, a copy of `template` if given, yield its URL, and drop it afterwards."""
    name = f"copy_{next(_database_numbers)}"
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template or 'template1'}")
    try:
        yield server.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def replace_database(server: sa.URL, database_url: str, template_url: str) -> None:
    """Replace a database by a new copy of another one; open connections to it end."""
    name, template = (sa.make_url(url).database for url in (database_url, template_url))
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template}")


def _values(redis_url: str) -> dict[str, str]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        return live_values(client)


def _answers(redis_url: str) -> list[Any]:
    with serving(settings_for(redis_url)) as app:
        found = [recommend(app, user) for user in (*KNOWN_USERS, UNKNOWN_USER)]
        found.append(ask(app, "/posts/popular"))
    return [{**answer, "age_seconds": None} for answer in found]
