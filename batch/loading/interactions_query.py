"""SQL of the interactions that nights and refreshes read; `doctor` explains its plan."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import sqlalchemy as sa

from batch.loading.schema import PADDED, UUIDS, cast_id, column_types, kind_of_ids
from contract.columns import ACTION, HAPPENED_AT, INTERACTIONS, POST_ID, SCHEMA, USER_ID
from contract.ids import Id, IdKind

FIRST_TIME, LAST_TIME = "0001-01-01 00:00:00 BC", "9999-12-31 23:59:59"
"""Substitutes for `-infinity` and `infinity`, which Arrow cannot represent."""


def interactions_since(connection: sa.Connection, since: datetime | None) -> str:
    """Return the query for the interactions after a time; None for all of them.

    The time is compared in the type of the column, so that an index on it is used.
    """
    types = column_types(connection, INTERACTIONS)
    where = "" if since is None else f" WHERE {_later_than(since, types[HAPPENED_AT])}"
    return _interactions(types) + where


def count_recent(connection: sa.Connection, now: datetime, since: datetime) -> tuple[int, int]:
    """Return the number of interactions later than now, and of those between `since` and now."""
    kind = column_types(connection, INTERACTIONS)[HAPPENED_AT]
    future = f"count(*) FILTER (WHERE {_later_than(now, kind)})"
    query = f"SELECT {future}, count(*) FROM {SCHEMA}.{INTERACTIONS} WHERE {_later_than(since, kind)}"
    later, both = connection.exec_driver_sql(query).one()
    return later, both - later


def _later_than(time: datetime, kind: str) -> str:
    """Return the SQL condition, with the time in the type of the column."""
    return f"{HAPPENED_AT} > {kind} '{time.astimezone(UTC).replace(tzinfo=None).isoformat(sep=' ')}'"


def interactions_of(
    connection: sa.Connection, user_ids: Iterable[Id], post_ids: Iterable[Id] | None = None
) -> str:
    """Return the query for all interactions of some users, or for those with some posts."""
    types = column_types(connection, INTERACTIONS)
    where = f" WHERE {USER_ID} = ANY({id_array(user_ids, types[USER_ID])})"
    if post_ids is not None:
        where += f" AND {POST_ID} = ANY({id_array(post_ids, types[POST_ID])})"
    return _interactions(types) + where


def id_array(ids: Iterable[Id], type_: str) -> str:
    """Return ids as an array in SQL, comparable with a column of a type without a cast of the column."""
    if kind_of_ids(type_) is IdKind.TEXT:  # split at a control character, which no id has
        joined = "\x1f".join(map(str, ids)).replace("\\", r"\\").replace("'", "''")
        array = f"string_to_array(E'{joined}', E'\\x1f')"
        return f"{array}::bpchar[]" if type_ == PADDED else array
    return f"'{{{','.join(map(str, ids))}}}'::{'uuid' if type_ in UUIDS else 'bigint'}[]"


def _interactions(types: dict[str, str]) -> str:
    """Return the query for all interactions; it assumes that the session's time zone is UTC."""
    kind = types[HAPPENED_AT]
    user, post = (f"{cast_id(name, kind_of_ids(types[name]))} AS {name}" for name in (USER_ID, POST_ID))
    first, last = (f"{kind} '{time}'" for time in (FIRST_TIME, LAST_TIME))
    return (
        f"SELECT {user}, {post}, {ACTION}::text AS {ACTION}, "
        f"CASE WHEN {HAPPENED_AT} BETWEEN {first} AND {last} THEN {HAPPENED_AT} "
        f"WHEN {HAPPENED_AT} > {last} THEN {last} WHEN {HAPPENED_AT} < {first} THEN {first} END "
        f"AS {HAPPENED_AT} FROM {SCHEMA}.{INTERACTIONS}"
    )
