"""What the tests of a failing batch share: a network with a run live, and whether it stays as it was."""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import redis
import sqlalchemy as sa

from tests.batch_support import live_values, query, run_here, runs_with_keys
from tests.serving_support import ask, recommend, serving, settings_for

KNOWN_USERS = (1, 7, 60)
UNKNOWN_USER = 10**6

LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ [a-z.]+: ")

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
        return run_here(*arguments, **self.places, **environment)

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

    def check_unchanged(self) -> None:
        """Check that what was live is live, complete and served as before, and that no other run has keys."""
        assert _values(self.redis_url) == self.values
        assert _answers(self.redis_url) == self.answers
        with redis.Redis.from_url(self.redis_url, decode_responses=True) as client:
            assert runs_with_keys(client) == {name.split(":")[2] for name in self.values if ":run:" in name}

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


def check_error(done: subprocess.CompletedProcess[str], code: int, says: str) -> None:
    """Check the exit code, and that stderr ends with the one line that holds `says`, without a traceback."""
    *logged, last = done.stderr.rstrip("\n").split("\n")
    assert last.startswith("error: "), done.stderr
    assert says in last
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
