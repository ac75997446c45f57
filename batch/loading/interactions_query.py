"""SQL of the interactions that nights and refreshes read; `doctor` explains its plan."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import sqlalchemy as sa

from contract.columns import ACTION, HAPPENED_AT, INTERACTIONS, POST_ID, SCHEMA, USER_ID

FIRST_TIME, LAST_TIME = "0001-01-01 00:00:00 BC", "9999-12-31 23:59:59"
"""Substitutes for `-infinity` and `infinity`, which Arrow cannot represent."""

TIME_TYPE = sa.text("""
    SELECT format_type(atttypid, NULL) FROM pg_attribute
    WHERE attrelid = to_regclass(:relation) AND attname = :column
""")


def interactions_since(connection: sa.Connection, since: datetime | None) -> str:
    """Return the query for the interactions after a time; None for all of them.

    The time is compared in the type of the column, so that an index on it is used.
    """
    kind = _time_type(connection)
    return _interactions(kind) + ("" if since is None else f" WHERE {_later_than(since, kind)}")


def count_recent(connection: sa.Connection, now: datetime, since: datetime) -> tuple[int, int]:
    """Return the number of interactions later than now, and of those between `since` and now."""
    kind = _time_type(connection)
    future = f"count(*) FILTER (WHERE {_later_than(now, kind)})"
    query = f"SELECT {future}, count(*) FROM {SCHEMA}.{INTERACTIONS} WHERE {_later_than(since, kind)}"
    later, both = connection.exec_driver_sql(query).one()
    return later, both - later


def _later_than(time: datetime, kind: str) -> str:
    """Return the SQL condition, with the time in the type of the column."""
    return f"{HAPPENED_AT} > {kind} '{time.astimezone(UTC).replace(tzinfo=None).isoformat(sep=' ')}'"


def interactions_of(connection: sa.Connection, user_ids: Iterable[int]) -> str:
    """Return the query for all interactions of some users."""
    ids = ",".join(map(str, user_ids))
    return _interactions(_time_type(connection)) + f" WHERE {USER_ID} = ANY('{{{ids}}}'::bigint[])"


def _time_type(connection: sa.Connection) -> str:
    relation = f"{SCHEMA}.{INTERACTIONS}"
    return str(connection.scalar(TIME_TYPE, {"relation": relation, "column": HAPPENED_AT}))


def _interactions(kind: str) -> str:
    """Return the query for all interactions; it assumes that the session's time zone is UTC."""
    first, last = (f"{kind} '{time}'" for time in (FIRST_TIME, LAST_TIME))
    return (
        f"SELECT {USER_ID}::bigint AS {USER_ID}, {POST_ID}::bigint AS {POST_ID}, {ACTION}::text AS {ACTION}, "
        f"CASE WHEN {HAPPENED_AT} BETWEEN {first} AND {last} THEN {HAPPENED_AT} "
        f"WHEN {HAPPENED_AT} > {last} THEN {last} WHEN {HAPPENED_AT} < {first} THEN {first} END "
        f"AS {HAPPENED_AT} FROM {SCHEMA}.{INTERACTIONS}"
    )
