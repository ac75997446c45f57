"""What to do about an error of Postgres: by its SQLSTATE, or by its message where the driver gives none."""

from __future__ import annotations

from psycopg2 import errorcodes

from contract import columns

SEE_README = "the README's 'Connect your own database' shows the three views"
SEE_LOG = "see the log of Postgres"
CHECK_SERVER = "check that it is up, and DATABASE_URL"
CHECK_USER = "check the user and password in DATABASE_URL"

# Newer than the driver's list.
IDLE_SESSION_TIMEOUT, TRANSACTION_TIMEOUT = "57P05", "25P04"

POOLER_IS_FULL, POOLER_REFUSES = "pooler is full", "pooler refuses"
"""In place of a SQLSTATE: PgBouncer has the same one for all its errors."""


def _raise_limit(name: str) -> str:
    """Return advice on a setting that ends queries or sessions; 0 is without limit."""
    return f"raise {name}: ALTER ROLE ... SET {name} = ..., or ?options=-c%20{name}%3D0 in DATABASE_URL"


ADVICE = {
    errorcodes.INVALID_PASSWORD: CHECK_USER,
    errorcodes.INVALID_AUTHORIZATION_SPECIFICATION: CHECK_USER,
    errorcodes.INVALID_CATALOG_NAME: "check the database's name in DATABASE_URL",
    errorcodes.INVALID_SCHEMA_NAME: SEE_README,
    errorcodes.INSUFFICIENT_PRIVILEGE: (
        f"GRANT USAGE, CREATE ON SCHEMA {columns.SCHEMA} to this role, SELECT on the three views in it, "
        "and let it own the other tables there"
    ),
    errorcodes.READ_ONLY_SQL_TRANSACTION: (
        "a night writes: ALTER ROLE ... SET default_transaction_read_only = off for this role, "
        "or set DATABASE_URL to the primary in place of a replica"
    ),
    errorcodes.CHARACTER_NOT_IN_REPERTOIRE: (
        "correct that text, or if all texts of a SQL_ASCII database have another encoding, "
        "name it in DATABASE_URL (?client_encoding=WIN1251)"
    ),
    errorcodes.DISK_FULL: "free space on the disk of Postgres",
    errorcodes.TOO_MANY_CONNECTIONS: "close other connections, or raise max_connections",
    errorcodes.QUERY_CANCELED: _raise_limit("statement_timeout"),
    errorcodes.LOCK_NOT_AVAILABLE: (
        f"another session holds what it needs: wait for it, or {_raise_limit('lock_timeout')}"
    ),
    errorcodes.IDLE_IN_TRANSACTION_SESSION_TIMEOUT: _raise_limit("idle_in_transaction_session_timeout"),
    IDLE_SESSION_TIMEOUT: _raise_limit("idle_session_timeout"),
    TRANSACTION_TIMEOUT: _raise_limit("transaction_timeout"),
    errorcodes.ADMIN_SHUTDOWN: "check that it is up, and start again",
    errorcodes.CRASH_SHUTDOWN: "check that it is up, and start again",
    errorcodes.CANNOT_CONNECT_NOW: "wait until it accepts connections, and start again",
    errorcodes.UNDEFINED_OBJECT: SEE_LOG + ", and `options` in DATABASE_URL",
    errorcodes.CANT_CHANGE_RUNTIME_PARAM: "take it out of `options` in DATABASE_URL",
    errorcodes.SERIALIZATION_FAILURE: "set DATABASE_URL to the primary in place of a replica, or start again",
    POOLER_IS_FULL: "raise the pooler's default_pool_size: a night needs 5 connections at a time",
    POOLER_REFUSES: "take it out of DATABASE_URL and of PGOPTIONS",
}

CODES = (
    ("password", errorcodes.INVALID_PASSWORD),
    ("authentication", errorcodes.INVALID_PASSWORD),
    ("idle-in-transaction timeout", errorcodes.IDLE_IN_TRANSACTION_SESSION_TIMEOUT),
    ("idle-session timeout", IDLE_SESSION_TIMEOUT),
    ("transaction timeout", TRANSACTION_TIMEOUT),
    ("statement timeout", errorcodes.QUERY_CANCELED),
    ("conflict with recovery", errorcodes.SERIALIZATION_FAILURE),
    ("administrator command", errorcodes.ADMIN_SHUTDOWN),
    ("the database system is", errorcodes.CANNOT_CONNECT_NOW),
    ("too many clients", errorcodes.TOO_MANY_CONNECTIONS),
    ("connection slots", errorcodes.TOO_MANY_CONNECTIONS),
    ("too many connections", errorcodes.TOO_MANY_CONNECTIONS),
    ("query_wait_timeout", POOLER_IS_FULL),
    ("unsupported startup parameter", POOLER_REFUSES),
    ("invalid byte sequence", errorcodes.CHARACTER_NOT_IN_REPERTOIRE),
)
"""Part of a message in English -> SQLSTATE, for errors on connecting, at the end of a connection, and while
the reader of interactions reads: there the drivers give no SQLSTATE."""


def advise(code: str | None, message: str) -> str:
    """Return what to do about an error.

    Parameters
    ----------
    code
        SQLSTATE; None without one.
    """
    if "due to user request" in message:
        return "somebody cancelled the query: start again"
    if code not in ADVICE:
        code = next((each for text, each in CODES if text in message), code)
    return CHECK_SERVER if code is None else ADVICE.get(code, SEE_LOG)
