"""The connections of pages: whatever a server does, a page answers within seconds.

Statements are limited by Postgres, replies by the driver, so a server that hangs costs a page one wait: what
else the page reads from that server fails at once.
"""

from __future__ import annotations

import select
from functools import partial
from typing import Any, TypeGuard

import psycopg2
import redis
import sqlalchemy as sa
from flask import g, has_request_context
from psycopg2 import extensions
from sqlalchemy.pool import QueuePool

from batch import postgres, redis_client
from batch.context import Stores
from batch.runs.ledger import actor
from contract.settings import Settings

STATEMENT_SECONDS = 5
"""How long a statement of a page may run."""

CONNECT_SECONDS = 3
REPLY_SECONDS = STATEMENT_SECONDS + 1
"""How long the driver waits for a byte of Postgres: a server that is stopped ends no statement."""

SETTING_UP = (extensions.STATUS_SETUP, 20)
"""Status of a connection that is being made; psycopg2 has no name for its CONN_STATUS_CONNECTING, 20."""

REDIS_SECONDS = 2.0

TIMED_OUT = "57014"
"""SQLSTATE of a statement that took too long."""


def open_stores(settings: Settings) -> Stores:
    """Make the connections; they connect when they are first used.

    A read-only console's transactions are read-only in Postgres too.

    Raises
    ------
    SettingsError
        A URL cannot be read.
    """
    limits = {"default_transaction_read_only": "on"} if settings.console.read_only else {}
    engine = open_page_engine(settings, "overnight console", **limits)
    client = redis_client.open_redis(settings, interactive=True, timeout_seconds=REDIS_SECONDS)
    if not redis_client.is_cluster(client):
        _refuse_second_wait(client.connection_pool)
    return Stores(settings, engine, client, actor("console"))


def open_page_engine(settings: Settings, application: str, **parameters: str) -> sa.Engine:
    """Make an engine for pages; it connects when it is first used.

    `parameters` are set in each session, beside the limit of a statement. Call `limit_replies` too.

    Raises
    ------
    SettingsError
        DATABASE_URL cannot be read.
    """
    engine = postgres.open_engine(
        settings,
        application,
        connect_timeout=CONNECT_SECONDS,
        poolclass=_Pool,
        pool_timeout=REPLY_SECONDS,
    )
    # A pooled connection that does not answer is replaced by a new one, which must not wait again.
    sa.event.listen(engine, "do_connect", _refuse_second_connect)
    limits = {"statement_timeout": f"{STATEMENT_SECONDS}s"} | parameters
    sa.event.listen(engine, "connect", partial(_limit_session, limits))
    return engine


def _refuse_second_connect(*_: Any) -> None:
    _raise_again("postgres")


def _limit_session(limits: dict[str, str], driver: Any, _: Any) -> None:
    with driver.cursor() as cursor:
        for name, value in limits.items():
            cursor.execute("SELECT set_config(%s, %s, false)", (name, value))
    driver.commit()


def limit_replies() -> None:
    """Make the driver give up on a Postgres that sends nothing; it holds for the whole process.

    Raises
    ------
    psycopg2.OperationalError
        From then on, in statements without a reply in REPLY_SECONDS; the connection is closed.
    """
    extensions.set_wait_callback(_wait_for_reply)


def _wait_for_reply(connection: Any) -> None:
    while (state := connection.poll()) != extensions.POLL_OK:
        reading = [connection] if state == extensions.POLL_READ else []
        writing = [connection] if state == extensions.POLL_WRITE else []
        seconds = CONNECT_SECONDS if connection.status in SETTING_UP else REPLY_SECONDS
        if not any(select.select(reading, writing, [], seconds)):
            error = psycopg2.OperationalError(f"it sent nothing for {seconds} seconds")
            if has_request_context():
                _failures()["postgres"] = error
            raise error


class _Pool(QueuePool):
    """Lends connections, but not again in a request in which Postgres did not answer."""

    def connect(self) -> Any:
        _raise_again("postgres")
        return super().connect()


def _refuse_second_wait(pool: redis.ConnectionPool) -> None:
    """Make a pool lend no connection in a request in which Redis did not answer."""
    get_connection = pool.get_connection

    def get_connection_once(*arguments: Any, **options: Any) -> Any:
        _raise_again("redis")
        return get_connection(*arguments, **options)

    pool.get_connection = get_connection_once  # type: ignore[method-assign]


def note_failure(error: BaseException) -> None:
    """Remember for the rest of the request that a server did not answer, if that is what happened.

    Parameters
    ----------
    error
        Raised by `readable_errors` in place of the library's error.
    """
    cause = error.__context__
    if not has_request_context():
        return
    if isinstance(cause, redis.ConnectionError | redis.TimeoutError):
        _failures()["redis"] = cause
    elif isinstance(cause, sa.exc.DBAPIError) and _is_unanswered(cause.orig):
        _failures()["postgres"] = cause.orig


def _is_unanswered(error: BaseException | None) -> TypeGuard[psycopg2.OperationalError]:
    return isinstance(error, psycopg2.OperationalError) and error.pgcode in (None, TIMED_OUT)


def _failures() -> dict[str, Exception]:
    failures: dict[str, Exception] = g.setdefault("failures", {})
    return failures


def _raise_again(server: str) -> None:
    if has_request_context() and server in _failures():
        raise _failures()[server]
