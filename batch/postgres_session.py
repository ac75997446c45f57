"""What every connection to Postgres needs of its session: settings that hold, and a session of its own.

Settings are SET after connecting and read back, because a pooler may refuse or ignore those that a client
asks for at startup. A pooler that gives each transaction another server process is refused: locks would
stay with a server process that others use, and two nights could run at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg2
import sqlalchemy as sa

from contract.errors import SourceError

CONNECT_TIMEOUT_SECONDS = 10

DEFAULTS = {
    # Idle on purpose: the lock's connection all night, the snapshot's while the copy is read.
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    # A holder of a lock whose machine has died is noticed within minutes.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
}
"""Settings of our sessions, where the server knows them and `options` in DATABASE_URL does not set them."""

REQUIRED = {"TimeZone": "UTC"}
"""Settings that no option replaces: lists must not depend on them."""

DATE_FORMAT = ("DateStyle", "ISO")
"""What the driver reads; the order of day and month in input stays as it is."""

READ_REQUIRED = "SELECT " + ", ".join(f"current_setting('{name}')" for name in REQUIRED)

ENCODING = "UTF8"
"""Encoding of the client, unless DATABASE_URL or PGCLIENTENCODING sets one.

A database of the encoding SQL_ASCII sends its bytes unchanged, and Postgres checks that they are UTF-8.
"""

ENCODING_OPTION = "client_encoding"

OTHER_SESSIONS = 8
"""Connections that are opened through a pooler to see whether they get the same server process.

PgBouncer gives the server process that was used last, so the first one usually does. More are opened
for busy poolers, and for several poolers behind one address.
"""

PID = "SELECT pg_backend_pid()"
STATEMENT_POOLING = "statement pooling"
"""In PgBouncer's refusal of a transaction, if it pools by statement."""

_SEVERAL_HOSTS = re.compile(r"([^:/?#]+://(?:[^/?#@]*@)?)([^/?#@]*,[^/?#@]*)(.*)", re.DOTALL)
_HOST = re.compile(r"\[?(.*?)\]?(?::(\d*))?")
_OPTION = re.compile(r"(?:-c\s*|--)(?P<name>[\w.-]+?)=(?P<value>(?:\\.|[^\\\s])*)\s*", re.DOTALL)
_OTHER_OPTION = re.compile(r"(?:\\.|[^\\\s])+\s*", re.DOTALL)


class TransactionPoolingError(SourceError):
    """Raised when a connection has no session of its own."""


@dataclass(frozen=True)
class SessionOptions:
    """`options` of a database URL.

    Attributes
    ----------
    settings
        Pairs of name and value that it sets by `-c name=value` or `--name=value`, in order.
    rest
        The other words, such as Neon's `endpoint=...`; they must be sent at startup.
    """

    settings: tuple[tuple[str, str], ...]
    rest: str

    @classmethod
    def parse(cls, text: str) -> SessionOptions:
        """Split as Postgres does: blanks separate words, a backslash escapes a character."""
        settings, rest, at = [], [], 0
        text = text.strip()
        while at < len(text):
            found = _OPTION.match(text, at)
            if found:
                settings.append((found["name"].replace("-", "_"), re.sub(r"\\(.)", r"\1", found["value"])))
            else:
                found = _OTHER_OPTION.match(text, at)
                if found is None:  # a single backslash at the end
                    break
                rest.append(found[0].strip())
            at = found.end()
        return cls(tuple(settings), " ".join(rest))


def parse_url(text: str) -> sa.URL:
    """Parse DATABASE_URL; several hosts may stand as libpq has them: `h1:5432,h2:5432`.

    Raises
    ------
    ArgumentError, ValueError
        It cannot be parsed.
    """
    several = _SEVERAL_HOSTS.fullmatch(text)
    if several is None:
        return sa.make_url(text)
    before, netloc, after = several.groups()
    found = [_HOST.fullmatch(each) for each in netloc.split(",")]
    hosts, ports = zip(*(each.groups("") for each in found if each), strict=True)
    url = sa.make_url(before + after)
    return url.update_query_dict({"host": ",".join(hosts), "port": ",".join(ports)})


def session_options(url: sa.URL) -> SessionOptions:
    """Return the options of a URL."""
    own = url.query.get("options", ())
    return SessionOptions.parse(own if isinstance(own, str) else " ".join(own))


def session_statements(url: sa.URL) -> list[str]:
    """Return queries that set our defaults, then the settings of a URL, then what is required.

    They run one by one, outside a transaction.
    """
    defaults = ", ".join(f"({_quote(name)}, {_quote(value)})" for name, value in DEFAULTS.items())
    known = f"(VALUES {defaults}) AS d (name, ours) JOIN pg_settings USING (name)"  # older servers know fewer
    settings = (*session_options(url).settings, DATE_FORMAT, *REQUIRED.items())
    setting = (set_statement(*each) for each in settings)
    return [f"SELECT set_config(name, ours, false) FROM {known}", *setting]


def set_statement(name: str, value: str) -> str:
    """Return a query that sets a setting; lists of names are parsed as in the configuration file."""
    return f"SELECT set_config({_quote(name)}, {_quote(value)}, false)"


def _quote(text: str) -> str:
    quoted = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{quoted}'"


def describe_hosts(url: sa.URL) -> str:
    """Return the hosts of a URL, for messages."""
    hosts = url.host or url.query.get("host") or "localhost"
    return ", ".join(hosts.split(",") if isinstance(hosts, str) else hosts)


class SessionSetup:
    """Prepares each new connection of an engine: a listener for the engine's event `connect`.

    Parameters
    ----------
    url
        Of the engine.
    connect
        Opens another connection of the driver with the same arguments.
    """

    def __init__(self, url: sa.URL, connect: Callable[[], Any]) -> None:
        self._url = url
        self._statements = session_statements(url)
        self._connect = connect
        self._checked = False

    def __call__(self, driver: Any, record: Any) -> None:
        """Check that the connection has a session of its own, and set the session's settings.

        Raises
        ------
        TransactionPoolingError
            It has none. Nothing was set.
        psycopg2.Error
            A setting of DATABASE_URL is refused.
        """
        driver.autocommit = True
        with driver.cursor() as cursor:
            if not self._checked and has_no_session(driver, cursor, self._connect):
                raise transaction_pooling(self._url)
            self._checked = True
            if ENCODING_OPTION not in driver.info.dsn_parameters:
                driver.set_client_encoding(ENCODING)
            for statement in self._statements:
                cursor.execute(statement)
            cursor.execute(READ_REQUIRED)
            if cursor.fetchone() != tuple(REQUIRED.values()):
                raise transaction_pooling(self._url)
        driver.autocommit = False


def has_no_session(driver: Any, cursor: Any, connect: Callable[[], Any]) -> bool:
    """Return whether the transactions of a connection run in server processes that others use too.

    A server process tells each client its id when the client connects. A pooler makes up an id. So a
    connection that knows the id of its server process is direct, and nothing else is tried. Through
    a pooler, another connection takes a server process from the pool and holds it in a transaction.
    If the first connection has a session, its server process is never that one, and never changes.

    Parameters
    ----------
    driver, cursor
        In autocommit mode.
    connect
        Opens another connection with the same arguments.
    """
    own = _read_pid(cursor)
    if own == driver.info.backend_pid:
        return False
    for _ in range(OTHER_SESSIONS):
        other = connect()
        try:
            other.autocommit = True
            with other.cursor() as other_cursor:
                other_cursor.execute("BEGIN")
                if _read_pid(other_cursor) == own or _read_pid(cursor) != own:
                    return True
        except psycopg2.Error as error:
            if STATEMENT_POOLING in str(error):
                return True
            raise
        finally:
            other.close()
    return False


def _read_pid(cursor: Any) -> int:
    cursor.execute(PID)
    return int(cursor.fetchone()[0])


def transaction_pooling(url: sa.URL) -> TransactionPoolingError:
    """Return the error of a connection that has no session of its own."""
    return TransactionPoolingError(
        f"Postgres at {describe_hosts(url)}: a pooler gives each transaction another connection, so locks "
        "and settings of a session do not hold. Nothing was changed; let it pool by session (PgBouncer: "
        "pool_mode = session), or set DATABASE_URL to Postgres itself"
    )
