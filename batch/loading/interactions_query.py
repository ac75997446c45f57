"""The query for the interactions after a time, which nights and refreshes read and `doctor` explains."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa

from contract.columns import ACTION, HAPPENED_AT, INTERACTIONS, POST_ID, SCHEMA, USER_ID

FIRST_TIME, LAST_TIME = "0001-01-01 00:00:00 BC", "9999-12-31 23:59:59"
"""What stands for `-infinity` and `infinity`, which Arrow has no values for."""

TIME_TYPE = sa.text("""
    SELECT format_type(atttypid, NULL) FROM pg_attribute
    WHERE attrelid = to_regclass(:relation) AND attname = :column
""")


def interactions_since(connection: sa.Connection, since: datetime | None) -> str:
    """Return the query for the interactions after a time, all of them for None.

    The session's time zone is UTC. The time is compared in the column's own
    type, so that an index on it is used.
    """
    relation = f"{SCHEMA}.{INTERACTIONS}"
    kind = str(connection.scalar(TIME_TYPE, {"relation": relation, "column": HAPPENED_AT}))
    first, last = (f"{kind} '{time}'" for time in (FIRST_TIME, LAST_TIME))
    where = ""
    if since is not None:
        in_utc = since.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ")
        where = f" WHERE {HAPPENED_AT} > {kind} '{in_utc}'"
    return (
        f"SELECT {USER_ID}::bigint AS {USER_ID}, {POST_ID}::bigint AS {POST_ID}, {ACTION}::text AS {ACTION}, "
        f"CASE WHEN {HAPPENED_AT} BETWEEN {first} AND {last} THEN {HAPPENED_AT} "
        f"WHEN {HAPPENED_AT} > {last} THEN {last} WHEN {HAPPENED_AT} < {first} THEN {first} END "
        f"AS {HAPPENED_AT} FROM {relation}{where}"
    )
