"""Check that the three views have the required columns, of usable types."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from batch.postgres_advice import SEE_README
from contract import columns
from contract.errors import SourceError
from contract.ids import IdKind, IdKinds

WHOLE = ("smallint", "integer", "bigint")
PADDED = "character"
"""Postgres fills char(n) with blanks, which are no part of the value."""
UUIDS = ("uuid",)
WORDS = ("text", "character varying", PADDED)
IDS = (*WHOLE, *UUIDS, *WORDS)
TIMES = ("timestamp with time zone", "timestamp without time zone")

REQUIRED: dict[str, dict[str, tuple[str, ...]]] = {
    columns.USERS: {columns.USER_ID: IDS},
    columns.POSTS: {columns.POST_ID: IDS},
    columns.INTERACTIONS: {
        columns.USER_ID: IDS,
        columns.POST_ID: IDS,
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
        columns.AUTHOR_ID: IDS,
    }
}
NAMING = (
    (columns.INTERACTIONS, columns.USER_ID, columns.USERS, columns.USER_ID),
    (columns.INTERACTIONS, columns.POST_ID, columns.POSTS, columns.POST_ID),
    (columns.POSTS, columns.AUTHOR_ID, columns.USERS, columns.USER_ID),
)
"""(view, column, view and column whose ids it names): both are of one kind."""
COLUMN_TYPES = sa.text("""
    SELECT a.attname, format_type(a.atttypid, NULL) AS type
    FROM pg_attribute a
    WHERE a.attrelid = to_regclass(:relation) AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum
""")


@dataclass(frozen=True)
class Columns:
    """Column -> Postgres type for each of the three views, in the order of the view."""

    users: dict[str, str]
    posts: dict[str, str]
    interactions: dict[str, str]

    @property
    def kinds(self) -> IdKinds:
        """Kinds of the ids."""
        return IdKinds(kind_of_ids(self.users[columns.USER_ID]), kind_of_ids(self.posts[columns.POST_ID]))


def kind_of_ids(type_: str) -> IdKind:
    """Return the kind of the ids in a column of a Postgres type."""
    if type_ in WHOLE:
        return IdKind.NUMBER
    return IdKind.UUID if type_ in UUIDS else IdKind.TEXT


def cast_id(column: str, kind: IdKind) -> str:
    """Return the SQL of a column of ids as the batch reads it: bigint or text."""
    return f"{column}::{'bigint' if kind is IdKind.NUMBER else 'text'}"


def check_views(connection: sa.Connection) -> Columns:
    """Check the columns of the three views before any row is read.

    Raises
    ------
    SourceError
        A view or column is missing, unreadable or of the wrong type; the message names the first.
    """
    views = Columns(*(_read_columns(connection, view) for view in REQUIRED))
    for naming, name, view, key in NAMING:
        named, own = getattr(views, naming).get(name), getattr(views, view)[key]
        if named is not None and kind_of_ids(own) != kind_of_ids(named):
            raise SourceError(
                f"{columns.SCHEMA}.{naming}.{name} is of type {named} and "
                f"{columns.SCHEMA}.{view}.{key} of type {own}; make both of one type in the views"
            )
    return views


def find_unknown_columns(views: Columns, names: str) -> list[str]:
    """Return those of some columns that the views do not have; names as in OVERNIGHT_IGNORE_COLUMNS."""
    parts = [name.partition(".") for name in names.split(",") if name]
    return [f"{view}.{column}" for view, _, column in parts if column not in getattr(views, view)]


def _read_columns(connection: sa.Connection, view: str) -> dict[str, str]:
    relation = f"{columns.SCHEMA}.{view}"
    if not connection.scalar(sa.text("SELECT to_regnamespace(:name) IS NOT NULL"), {"name": columns.SCHEMA}):
        raise SourceError(f"the schema {columns.SCHEMA} is missing; {SEE_README}")
    found = column_types(connection, view)
    if not found:
        raise SourceError(f"the view {relation} is missing; {SEE_README}")
    if not connection.scalar(sa.text("SELECT has_table_privilege(:name, 'SELECT')"), {"name": relation}):
        raise SourceError(f"no right to read {relation}; GRANT SELECT ON {relation} to this role")
    for column, types in REQUIRED[view].items():
        if column not in found:
            raise SourceError(f"the view {relation} lacks the column {column}; {SEE_README}")
        _check_type(relation, column, found[column], types)
    for column, types in OPTIONAL.get(view, {}).items():
        if column in found:
            _check_type(relation, column, found[column], types)
    return found


def column_types(connection: sa.Connection, view: str) -> dict[str, str]:
    """Return column -> Postgres type of a view, in its order; empty if it does not exist."""
    found = connection.execute(COLUMN_TYPES, {"relation": f"{columns.SCHEMA}.{view}"})
    return {row.attname: row.type for row in found}


def _check_type(relation: str, column: str, found: str, types: tuple[str, ...]) -> None:
    if found not in types:
        wanted = "a whole number, a uuid or text" if types is IDS else " or ".join(types)
        raise SourceError(f"{relation}.{column} is of type {found} and must be {wanted}; cast it in the view")
