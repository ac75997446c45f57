"""Sessions of Postgres: settings that hold, and poolers that give a connection no session of its own."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis
import sqlalchemy as sa

from batch.context import open_stores
from batch.experiment.exposures import drain
from batch.loading.arrow_reader import read_batches
from batch.loading.copy import copy_out
from batch.postgres import connected, open_engine, snapshot
from batch.runs import ledger, lock
from contract.errors import SourceError
from contract.exposures import FIELD, Exposure, encode_exposures
from contract.keys import Keys
from contract.settings import Settings
from demo.postgres import make_engine
from tests.support.batch import execute, live_lists, live_run, make_network, query, run_here
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
    enough = {"default_pool_size": 5, "query_wait_timeout": 10}  # as README says
    with pgbouncer(servers["database_url"], tmp_path, "session", **enough) as url:
        pooled = servers | {"database_url": f"{url}?options=-c%20statement_timeout%3D55s"}
        done = run_here("run", **pooled)
        assert done.returncode == 0, done.stderr
        assert live_run(redis_client, "control")
        server = f"Postgres at 127.0.0.1:{sa.make_url(url).port}, database {sa.make_url(url).database}"
        assert f"{server}; Redis at 127.0.0.1\n" in done.stderr
        execute(servers["database_url"], "INSERT INTO recs.interactions VALUES (7, 101, 'like', now())")
        done = run_here("refresh", **pooled)
        assert done.returncode == 0, done.stderr
        assert server in done.stderr
        assert run_here("refresh", "--quiet", **pooled).stderr == ""
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


def test_a_long_name_of_an_application_is_cut_before_postgres_complains_of_it(database_url: str) -> None:
    with open_engine(Settings.of(database_url=database_url), f"overnight {'ü' * 40}").connect() as connection:
        driver: Any = connection.connection.driver_connection
        assert driver.info.dsn_parameters["application_name"] == f"overnight {'ü' * 26}"


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


def _wait_in_a_transaction(engine: sa.Engine, settings: Settings) -> None:
    with snapshot(engine) as connection:
        _wait_until_it_is_closed(connection)
        connection.scalar(sa.text("SELECT 1"))


def _wait_and_copy(engine: sa.Engine, settings: Settings) -> None:
    with snapshot(engine) as connection:
        _wait_until_it_is_closed(connection)
        list(copy_out(connection, "SELECT 1 AS user_id", {}))


def _wait_and_leave(engine: sa.Engine, settings: Settings) -> None:
    with snapshot(engine) as connection:
        _wait_until_it_is_closed(connection)


def _wait_until_it_is_closed(connection: sa.Connection) -> None:
    driver: Any = connection.connection.driver_connection
    connection.scalar(sa.text("SELECT 1"))
    assert select.select([driver.fileno()], [], [], 60)[0]  # the server has sent why


def _run_a_long_query(engine: sa.Engine, settings: Settings) -> None:
    with snapshot(engine) as connection:
        connection.execute(sa.text("SELECT pg_sleep(60)"))


def _copy_a_long_query(engine: sa.Engine, settings: Settings) -> None:
    with snapshot(engine) as connection:
        list(copy_out(connection, "SELECT 1 AS user_id FROM pg_sleep(60)", {}))


def _read_a_long_query(engine: sa.Engine, settings: Settings) -> None:
    with (
        snapshot(engine) as connection,
        read_batches(connection, settings, "SELECT 1 FROM pg_sleep(60)") as batches,
    ):
        list(batches)


def _be_ended(engine: sa.Engine, settings: Settings) -> None:
    with snapshot(engine) as connection:
        pid = connection.scalar(sa.text("SELECT pg_backend_pid()"))
        execute(settings.stores.database_url, f"SELECT pg_terminate_backend({pid}, 60000)")
        connection.scalar(sa.text("SELECT 1"))


def _write(engine: sa.Engine, settings: Settings) -> None:
    ledger.create(engine)


IDLE = "idle_in_transaction_session_timeout"


@pytest.mark.parametrize(
    ("setting", "value", "act", "reason"),
    [
        (IDLE, "50", _wait_in_a_transaction, "terminating connection due to idle-in-transaction timeout"),
        (IDLE, "50", _wait_and_copy, "terminating connection due to idle-in-transaction timeout"),
        (IDLE, "50", _wait_and_leave, "terminating connection due to idle-in-transaction timeout"),
        ("transaction_timeout", "50", _run_a_long_query, "terminating connection due to transaction timeout"),
        (
            "transaction_timeout",
            "50",
            _read_a_long_query,
            "terminating connection due to transaction timeout",
        ),
        ("statement_timeout", "50", _run_a_long_query, "canceling statement due to statement timeout"),
        ("statement_timeout", "50", _copy_a_long_query, "canceling statement due to statement timeout"),
        ("statement_timeout", "50", _read_a_long_query, "canceling statement due to statement timeout"),
        ("jit", "off", _be_ended, "terminating connection due to administrator command; check that it is up"),
        ("no_such_setting", "1", _write, 'unrecognized configuration parameter "no_such_setting"'),
        (
            "default_transaction_read_only",
            "on",
            _write,
            "cannot execute CREATE TABLE in a read-only transaction",
        ),
    ],
)
def test_the_reason_of_the_server_is_given_with_the_setting_to_change(
    database_url: str, setting: str, value: str, act: Callable[[sa.Engine, Settings], None], reason: str
) -> None:
    execute(database_url, "CREATE SCHEMA recs")
    url = sa.make_url(database_url).update_query_dict({"options": f"-c {setting}={value}"})
    settings = Settings.of(database_url=url.render_as_string(hide_password=False))
    with pytest.raises(SourceError) as raised, connected(settings) as engine:
        act(engine, settings)
    assert f": {reason}" in str(raised.value)
    advice = str(raised.value).partition(f": {reason}")[2]
    assert "\n" not in advice
    if setting != "jit":
        assert setting.removeprefix("no_such_setting") in advice or "`options`" in advice


def test_a_lock_whose_connection_was_ended_says_why(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with lock.hold(open_engine(Settings.of(database_url=database_url)), "recs") as held:
        execute(
            database_url, "SELECT pg_terminate_backend(pid, 60000) FROM pg_locks WHERE locktype = 'advisory'"
        )
        held.check()
    assert "the lock is taken again: terminating connection due to administrator command" in caplog.text


@needs_pgbouncer
@pytest.mark.parametrize(
    ("options", "url_options", "reason"),
    [
        ({"default_pool_size": 1, "query_wait_timeout": 1}, "", "raise the pooler's default_pool_size"),
        (
            {},
            "?options=endpoint%3Dep-cool",
            "unsupported startup parameter: options; take it out of DATABASE_URL",
        ),
    ],
)
def test_what_a_pooler_refuses_is_told_with_what_to_do(
    servers: dict[str, Any], tmp_path: Path, options: dict[str, int], url_options: str, reason: str
) -> None:
    with pgbouncer(servers["database_url"], tmp_path, "session", **options) as url:
        done = run_here("run", **servers | {"database_url": f"{url}{url_options}"})
    assert done.returncode == 1
    assert reason in done.stderr


@pytest.fixture
def in_encoding(database_url: str) -> Iterator[Callable[[str], str]]:
    """A function that makes an empty database of an encoding and returns its URL."""
    made = []

    def make(encoding: str) -> str:
        url = sa.make_url(database_url)
        made.append(f"{url.database}_{encoding.lower()}")
        with make_engine(database_url).execution_options(isolation_level="AUTOCOMMIT").connect() as admin:
            options = f"ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
            admin.exec_driver_sql(f"CREATE DATABASE {made[-1]} {options}")
        return url.set(database=made[-1]).render_as_string(hide_password=False)

    yield make
    for name in made:
        with make_engine(database_url).execution_options(isolation_level="AUTOCOMMIT").connect() as admin:
            admin.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("encoding", ["WIN1251", "SQL_ASCII"])
def test_an_exposure_of_an_id_that_no_user_can_have_does_not_hold_up_the_others(
    in_encoding: Callable[[str], str], redis_url: str, redis_client: redis.Redis, encoding: str
) -> None:
    url = in_encoding(encoding)
    execute(url, "CREATE SCHEMA recs")
    settings = Settings.of(database_url=url, redis_url=redis_url)
    asked = ["кот", "😀", "cat"]
    exposures = [Exposure(user, "test", "R", "popular", 1e9 + at) for at, user in enumerate(asked)]
    redis_client.xadd(Keys().exposures, {FIELD: encode_exposures(exposures)})
    with open_stores(settings, "a test") as stores:
        ledger.create(stores.engine)
        drain(stores, datetime.fromtimestamp(1e9, UTC))
        with stores.engine.connect() as connection:
            rows = connection.exec_driver_sql(
                "SELECT user_id FROM recs.exposures ORDER BY served_at"
            ).scalars()
            assert list(rows) == [user for user in asked if encoding == "SQL_ASCII" or user != "😀"]
    assert redis_client.xlen(Keys().exposures) == 0


CYRILLIC = "UPDATE recs.posts SET topic = 'тема ' || topic, text = 'текст ' || text"


def make_cyrillic_network(database_url: str, encoding: str) -> None:
    """Make a network whose texts are in an encoding."""
    make_network(database_url)
    engine = make_engine(database_url)
    with engine.begin() as connection:
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor:
            cursor.execute(CYRILLIC.encode(encoding))


@pytest.mark.parametrize(
    "encodings",
    [
        ("SQL_ASCII", "utf-8", ""),
        ("SQL_ASCII", "cp1251", "&client_encoding=WIN1251"),
        ("WIN1251", "cp1251", ""),
        ("UTF8", "utf-8", "&client_encoding=WIN1251"),
    ],
)
def test_the_encoding_of_a_database_changes_nothing(
    servers: dict[str, Any],
    redis_client: redis.Redis,
    in_encoding: Callable[[str], str],
    encodings: tuple[str, str, str],
) -> None:
    database, texts, options = encodings
    execute(servers["database_url"], CYRILLIC)
    assert run_here("run", "--variant", "control", **servers).returncode == 0
    expected = live_lists(redis_client), redis_client.hgetall("recs:posts")
    assert any("текст" in text for text in redis_client.hgetall("recs:posts").values())
    url = in_encoding(database)
    make_cyrillic_network(url, texts)
    done = run_here("run", "--variant", "control", **servers | {"database_url": url + options})
    assert done.returncode == 0, done.stderr
    assert (live_lists(redis_client), redis_client.hgetall("recs:posts")) == expected
    execute(url, "INSERT INTO recs.interactions VALUES (7, 101, 'like', now())")
    for command in (["refresh"], ["doctor"], ["show", str(live_run(redis_client))], ["explain", "7", "102"]):
        done = run_here(*command, **servers | {"database_url": url + options})
        assert done.returncode == 0, done.stderr


def test_a_text_that_is_not_valid_is_an_error_that_says_what_to_do(
    servers: dict[str, Any], in_encoding: Callable[[str], str]
) -> None:
    url = in_encoding("SQL_ASCII")
    make_cyrillic_network(url, "cp1251")
    done = run_here("run", **servers | {"database_url": url})
    assert done.returncode == 1
    assert 'invalid byte sequence for encoding "UTF8"' in done.stderr
    assert "name it in DATABASE_URL (?client_encoding=WIN1251)" in done.stderr
    assert "Traceback" not in done.stderr
