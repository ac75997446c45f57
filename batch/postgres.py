"""The batch's Postgres: engine, readable errors, and a consistent snapshot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg2
import sqlalchemy as sa
from psycopg2 import errorcodes
from psycopg2.extensions import make_dsn
from sqlalchemy.exc import ArgumentError, DBAPIError, PendingRollbackError

from batch.postgres_advice import advise
from batch.postgres_driver import Connection
from batch.postgres_session import (
    CONNECT_TIMEOUT_SECONDS,
    ENCODING,
    ENCODING_OPTION,
    SessionSetup,
    describe_hosts,
    parse_url,
    session_options,
    session_statements,
    set_statement,
)
from contract.errors import SettingsError, SourceError
from contract.logs import redact
from contract.settings import Settings
from contract.text import as_clause

INTERACTIVE_SECONDS = 2.0
"""How long a query of `limit_time` may run."""

READ_ONLY = sa.text("SET TRANSACTION READ ONLY")

MAX_NAME_BYTES = 63
"""Bytes of an application's name in Postgres."""


def open_engine(
    settings: Settings,
    application: str = "overnight",
    *,
    connect_timeout: int = CONNECT_TIMEOUT_SECONDS,
    **options: Any,
) -> sa.Engine:
    """Make an engine; it connects when it is first used.

    `connect_timeout`, in seconds, holds where DATABASE_URL has none; `options` are those of
    `sqlalchemy.create_engine`.

    Raises
    ------
    SettingsError
        DATABASE_URL cannot be read.
    """
    try:
        url = parse_url(settings.stores.database_url).set(drivername="postgresql+psycopg2")
        engine = sa.create_engine(
            url,
            connect_args=_connect_arguments(url, application, connect_timeout)
            | {"connection_factory": Connection},
            pool_pre_ping=True,
            hide_parameters=True,
            json_serializer=partial(json.dumps, ensure_ascii=False),  # SQL_ASCII takes no \u escapes
            **options,
        )
        arguments = _driver_arguments(engine, application)
    except (ArgumentError, ValueError):
        raise SettingsError("DATABASE_URL cannot be read; its parts must be percent-encoded") from None
    setup = SessionSetup(url, partial(psycopg2.connect, **arguments, connection_factory=Connection))
    sa.event.listen(engine, "connect", setup, insert=True)  # before the queries of SQLAlchemy
    return engine


def _connect_arguments(
    url: sa.URL, application: str, connect_timeout: int = CONNECT_TIMEOUT_SECONDS
) -> dict[str, Any]:
    """Return connection arguments that replace those of the URL.

    Only what cannot be set later is sent at startup, as poolers refuse most of it.
    """
    own = url.query.get("application_name")
    name = f"{own}: {application}" if own else application
    return {
        "connect_timeout": url.query.get("connect_timeout", connect_timeout),
        # Postgres cuts a longer name and says so on stderr.
        "application_name": name.encode()[:MAX_NAME_BYTES].decode(errors="ignore"),
        "options": session_options(url).rest or None,
    }


def _driver_arguments(engine: sa.Engine, application: str) -> dict[str, Any]:
    _, arguments = engine.dialect.create_connect_args(engine.url)
    return dict(arguments) | _connect_arguments(engine.url, application)


def connection_string(connection: sa.Connection) -> str:
    """Return a libpq connection string for the server of an open connection.

    All options of DATABASE_URL apply but settings of the session, see `session_queries`; of several
    hosts it names the one that the connection uses.
    """
    driver: Any = connection.connection.driver_connection
    arguments = _driver_arguments(connection.engine, "")
    arguments["application_name"] = driver.info.parameter_status("application_name")
    actual = {"host": driver.info.host, "port": driver.info.port}
    for name in actual:  # those of several hosts
        arguments.pop(name, None)
    arguments |= {name: value for name, value in actual.items() if value}
    if "," in str(arguments.get("hostaddr", "")):  # one for each of several hosts
        del arguments["hostaddr"]
    return str(make_dsn(**arguments))


def session_queries(connection: sa.Connection) -> list[str]:
    """Return queries that give another connection the session's settings of an open one."""
    driver: Any = connection.connection.driver_connection
    encoding = driver.info.dsn_parameters.get(ENCODING_OPTION, ENCODING)
    return [set_statement(ENCODING_OPTION, encoding), *session_statements(connection.engine.url)]


@contextmanager
def connected(settings: Settings, application: str = "overnight") -> Iterator[sa.Engine]:
    """Lend an engine with readable errors, and close it.

    Raises
    ------
    SourceError
        As `readable_errors` does.
    """
    engine = open_engine(settings, application)
    try:
        with readable_errors(settings):
            yield engine
    finally:
        engine.dispose()


@contextmanager
def readable_errors(settings: Settings) -> Iterator[None]:
    """Turn errors of the database into one line that shows no secret.

    Raises
    ------
    SourceError
        In place of SQLAlchemy's or the driver's error.
    """
    try:
        yield
    except (DBAPIError, psycopg2.Error, PendingRollbackError) as error:
        raise _readable_error(settings, error) from None


def _readable_error(settings: Settings, error: Exception) -> SourceError:
    if isinstance(error, PendingRollbackError):  # the transaction continued after an error that was caught
        return source_error(settings, None, "the connection was lost")
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, psycopg2.Error):
        return source_error(settings, None, str(cause))
    return source_error(settings, cause.pgcode, cause.diag.message_primary or str(cause))


def source_error(settings: Settings, code: str | None, message: str) -> SourceError:
    """Return an error with one line that shows no secret.

    Parameters
    ----------
    code
        SQLSTATE; None without one.
    """
    reason = redact(as_clause(message), settings.secrets())
    server = f"Postgres at {describe_hosts(parse_url(settings.stores.database_url))}"
    unset = settings.stores.describe_default("database_url") if code is None else None
    return SourceError(f"{server}: {reason}; {unset or advise(code, reason)}")


def describe(settings: Settings) -> str:
    """Return which hosts and database DATABASE_URL names, without user and password."""
    url = parse_url(settings.stores.database_url)
    hosts, ports = describe_hosts(url).split(", "), str(url.port or url.query.get("port", "")).split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    servers = ", ".join(f"{host}:{port}" if port else host for host, port in zip(hosts, ports, strict=True))
    return f"Postgres at {servers}, " + (
        f"database {url.database}" if url.database else "the role's database"
    )


@contextmanager
def snapshot(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open a read-only transaction in which every query sees the same rows."""
    with engine.connect() as connection:
        connection = connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            # SQLAlchemy's option would make later transactions of the connection READ WRITE, whatever the
            # server's default is.
            connection.execute(READ_ONLY)
            yield connection


@contextmanager
def limit_time(engine: sa.Engine, what: str, fix: str) -> Iterator[sa.Connection]:
    """Open a read-only transaction whose queries end after `INTERACTIVE_SECONDS`.

    Raises
    ------
    SourceError
        A query took longer; the message has `what` was read and `fix`.
    """
    with snapshot(engine) as connection:
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {round(INTERACTIVE_SECONDS * 1000)}")
        try:
            yield connection
        except DBAPIError as error:
            if getattr(error.orig, "pgcode", None) != errorcodes.QUERY_CANCELED:
                raise
            raise SourceError(f"{what} took over {INTERACTIVE_SECONDS:g} s and was stopped; {fix}") from None
