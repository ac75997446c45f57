"""The way into Postgres: the engine, one consistent snapshot, and the check of the three views."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from contract import columns
from contract.errors import SourceError
from contract.logs import redact
from contract.settings import Settings

CONNECT_TIMEOUT_SECONDS = 10

WHOLE = ("smallint", "integer", "bigint")
WORDS = ("text", "character varying", "character")
TIMES = ("timestamp with time zone", "timestamp without time zone")

REQUIRED: dict[str, dict[str, tuple[str, ...]]] = {
    columns.USERS: {columns.USER_ID: WHOLE},
    columns.POSTS: {columns.POST_ID: WHOLE},
    columns.INTERACTIONS: {
        columns.USER_ID: WHOLE,
        columns.POST_ID: WHOLE,
        columns.ACTION: WORDS,
        columns.HAPPENED_AT: TIMES,
    },
}
OPTIONAL: dict[str, dict[str, tuple[str, ...]]] = {
    columns.POSTS: {
        columns.TOPIC: WORDS,
        columns.TEXT: WORDS,
        columns.CREATED_AT: TIMES,
        columns.LIKE_COUNT: WHOLE,
        columns.VIEW_COUNT: WHOLE,
    }
}
HOW_TO_MEND = "the README's 'Connect your own database' shows the three views"

COLUMN_TYPES = sa.text("""
    SELECT a.attname, format_type(a.atttypid, NULL) AS type
    FROM pg_attribute a
    WHERE a.attrelid = to_regclass(:relation) AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum
""")


@dataclass(frozen=True)
class Columns:
    """Column -> Postgres type of each of the three views, in their own order."""

    users: dict[str, str]
    posts: dict[str, str]
    interactions: dict[str, str]


def open_engine(settings: Settings, application: str = "overnight") -> sa.Engine:
    """Make an engine; it connects when first used, not here."""
    url = sa.make_url(settings.database_url).set(drivername="postgresql+psycopg2")
    arguments = {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "application_name": application,
        "options": "-c timezone=UTC",
    }
    return sa.create_engine(url, connect_args=arguments, pool_pre_ping=True, hide_parameters=True)


@contextmanager
def explained(settings: Settings) -> Iterator[None]:
    """Turn any error of the database inside into one line that shows no secret.

    Raises
    ------
    SourceError
        In place of the driver's error.
    """
    try:
        yield
    except DBAPIError as error:
        reason = re.sub(r"\s+", " ", str(error.orig)).strip()
        url = sa.make_url(settings.database_url)
        place = f"Postgres at {url.host or url.query.get('host') or 'localhost'}"
        raise SourceError(f"{place}: {redact(reason, settings.secrets())}; check DATABASE_URL") from None


@contextmanager
def snapshot(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open a read-only transaction in which every query sees the same rows."""
    with engine.connect() as connection:
        connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with connection.begin():
            yield connection


def check_views(connection: sa.Connection) -> Columns:
    """Look at the columns of the three views before any row is read.

    Raises
    ------
    SourceError
        Names the first view or column that is missing, unreadable or of the wrong type.
    """
    return Columns(*(_checked(connection, view) for view in REQUIRED))


def _checked(connection: sa.Connection, view: str) -> dict[str, str]:
    relation = f"{columns.SCHEMA}.{view}"
    if not connection.scalar(sa.text("SELECT to_regnamespace(:name) IS NOT NULL"), {"name": columns.SCHEMA}):
        raise SourceError(f"the schema {columns.SCHEMA} is missing; {HOW_TO_MEND}")
    found = {row.attname: row.type for row in connection.execute(COLUMN_TYPES, {"relation": relation})}
    if not found:
        raise SourceError(f"the view {relation} is missing; {HOW_TO_MEND}")
    if not connection.scalar(sa.text("SELECT has_table_privilege(:name, 'SELECT')"), {"name": relation}):
        raise SourceError(f"no right to read {relation}; GRANT SELECT ON {relation} to this role")
    for column, types in REQUIRED[view].items():
        if column not in found:
            raise SourceError(f"the view {relation} lacks the column {column}; {HOW_TO_MEND}")
        _check_type(relation, column, found[column], types)
    for column, types in OPTIONAL.get(view, {}).items():
        if column in found:
            _check_type(relation, column, found[column], types)
    return found


def _check_type(relation: str, column: str, found: str, types: tuple[str, ...]) -> None:
    if found not in types:
        wanted = " or ".join(types)
        raise SourceError(f"{relation}.{column} is of type {found} and must be {wanted}; cast it in the view")


def latest_interaction(connection: sa.Connection, until: datetime) -> datetime | None:
    """Return when the last interaction not later than `until` happened."""
    query = sa.text(f"""
        SELECT max({columns.HAPPENED_AT}) FROM {columns.SCHEMA}.{columns.INTERACTIONS}
        WHERE {columns.HAPPENED_AT} <= :until
    """)
    found: datetime | None = connection.scalar(query, {"until": until})
    return found.replace(tzinfo=UTC) if found is not None and found.tzinfo is None else found
