"""Sessions of Postgres: settings that hold, and poolers that give a connection no session of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis
import sqlalchemy as sa

from batch.loading.arrow_reader import read_batches
from batch.postgres import open_engine, snapshot
from batch.runs import lock
from contract.errors import SourceError
from contract.settings import Settings
from tests.support.batch import execute, live_run, make_network, query, run_here
from tests.support.pgbouncer import needs_pgbouncer, pgbouncer

SETTINGS = "SELECT current_setting('TimeZone') || ' ' || current_setting('statement_timeout') AS found"
OURS = "SELECT count(*) FROM pg_tables WHERE schemaname = 'recs' AND tablename = 'runs'"

POOLS: dict[str, dict[str, Any]] = {
    "transaction": {"pool_mode": "transaction"},
    "transaction, one server connection": {"pool_mode": "transaction", "default_pool_size": 1},
    "transaction, in turn": {"pool_mode": "transaction", "server_round_robin": 1, "min_pool_size": 5},
    "transaction, options ignored": {"pool_mode": "transaction", "ignore_startup_parameters": "options"},
    "statement": {"pool_mode": "statement"},
}


@pytest.fixture
def servers(database_url: str, redis_url: str, tmp_path: Path) -> dict[str, Any]:
    """A small network: its servers and model folder."""
    make_network(database_url)
    execute(database_url, f"ALTER DATABASE {sa.make_url(database_url).database} SET timezone = 'Asia/Tokyo'")
    return {"database_url": database_url, "redis_url": redis_url, "model_dir": tmp_path / "models"}


@needs_pgbouncer
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("command", ["run", "refresh", "doctor", "runs"])
def test_pooling_by_transaction_is_refused_before_anything_is_done(
    servers: dict[str, Any], tmp_path: Path, pool: str, command: str
) -> None:
    with pgbouncer(servers["database_url"], tmp_path, **POOLS[pool]) as url:
        done = run_here(command, **servers | {"database_url": url})
        locks = query(servers["database_url"], "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
    assert done.returncode == 1, done.stderr
    output = done.stdout if command == "doctor" else done.stderr
    assert "pool_mode = session), or set DATABASE_URL to Postgres itself\n" in output
    assert "Traceback" not in done.stderr
    assert locks == [(0,)]
    assert query(servers["database_url"], OURS) == [(0,)]


@needs_pgbouncer
def test_a_busy_pooler_by_transaction_is_refused_too(servers: dict[str, Any], tmp_path: Path) -> None:
    with pgbouncer(servers["database_url"], tmp_path, "transaction", min_pool_size=5) as url:
        held = [psycopg2.connect(url) for _ in range(3)]
        for connection in held:
            connection.cursor().execute("SELECT 1")  # in a transaction that stays open
        engine = open_engine(Settings.of(database_url=url))
        with pytest.raises(SourceError, match="pool by session"):
            engine.connect()
        for connection in held:
            connection.close()


@needs_pgbouncer
def test_pooling_by_session_works_as_a_direct_connection_does(
    servers: dict[str, Any], redis_client: redis.Redis, tmp_path: Path
) -> None:
    with pgbouncer(servers["database_url"], tmp_path, "session") as url:
        pooled = servers | {"database_url": f"{url}?options=-c%20statement_timeout%3D55s"}
        done = run_here("run", **pooled)
        assert done.returncode == 0, done.stderr
        assert live_run(redis_client, "control")
        execute(servers["database_url"], "INSERT INTO recs.interactions VALUES (7, 101, 'like', now())")
        done = run_here("refresh", **pooled)
        assert done.returncode == 0, done.stderr
        done = run_here("doctor", **pooled)
        assert done.returncode == 0, done.stdout
        settings = Settings.of(database_url=pooled["database_url"])
        with snapshot(open_engine(settings)) as connection:
            assert connection.scalar(sa.text(SETTINGS)) == "UTC 55s"
            with read_batches(connection, settings, SETTINGS) as batches:
                assert [batch.column("found").to_pylist() for batch in batches] == [["UTC 55s"]]
        with (
            lock.hold(open_engine(settings), "recs"),
            pytest.raises(lock.LockedError),
            lock.hold(open_engine(Settings.of(database_url=servers["database_url"])), "recs"),
        ):
            pass


@needs_pgbouncer
def test_several_hosts_in_the_url_work(servers: dict[str, Any], tmp_path: Path) -> None:
    with pgbouncer(servers["database_url"], tmp_path, "session") as url:
        settings = Settings.of(database_url=url.replace("@", "@127.0.0.1:1,"))
        with snapshot(open_engine(settings)) as connection:
            assert connection.scalar(sa.text("SELECT 1")) == 1
            with read_batches(connection, settings, "SELECT 1 AS found") as batches:
                assert [batch.column("found").to_pylist() for batch in batches] == [[1]]


def test_what_the_url_says_of_the_session_is_kept(database_url: str) -> None:
    options = "-c statement_timeout=12345 -c idle_session_timeout=77s -c search_path=public,recs -c jit=off"
    query = {"options": options, "application_name": "mine", "connect_timeout": "3"}
    url = sa.make_url(database_url).update_query_dict(query)
    settings = Settings.of(database_url=url.render_as_string(hide_password=False))
    names = ("statement_timeout", "idle_session_timeout", "search_path", "application_name", "TimeZone")
    shown = " || ' ' || ".join(f"current_setting('{name}')" for name in names)
    expected = "12345ms 77s public,recs mine: overnight test UTC"
    with snapshot(open_engine(settings, "overnight test")) as connection:
        assert connection.scalar(sa.text(f"SELECT {shown}")) == expected
        driver: Any = connection.connection.driver_connection
        assert driver.info.dsn_parameters["connect_timeout"] == "3"
        with read_batches(connection, settings, f"SELECT {shown} AS found") as batches:
            assert [batch.column("found").to_pylist() for batch in batches] == [[expected]]


def test_a_server_that_ends_idle_sessions_leaves_ours_alone(database_url: str) -> None:
    name = sa.make_url(database_url).database
    for setting in ("idle_session_timeout", "idle_in_transaction_session_timeout"):
        execute(database_url, f"ALTER DATABASE {name} SET {setting} = '1s'")
    with open_engine(Settings.of(database_url=database_url)).connect() as connection:
        assert connection.scalar(sa.text("SHOW idle_session_timeout")) == "0"
        assert connection.scalar(sa.text("SHOW idle_in_transaction_session_timeout")) == "0"


def test_a_lock_that_its_connection_does_not_hold_is_an_error(database_url: str) -> None:
    held = lock.Lock(open_engine(Settings.of(database_url=database_url)), "recs", lock.NIGHT, 0)
    held.check()
    held._connection.execute(lock.UNLOCK, held._name)
    with pytest.raises(SourceError, match="pool by session"):
        held.check()
    held.release()
