"""Ids of users in our own tables: bigint, or text once one of them was not a whole number."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from batch.ids import Ids
from batch.loading.schema import WHOLE
from contract.columns import INTERACTIONS, MAX_ID, SCHEMA, USER_ID, USERS
from contract.ids import Id

NUMBER = re.compile("-?[0-9]{1,19}")

COLUMN_TYPE = sa.text(f"""
    SELECT format_type(atttypid, NULL) FROM pg_attribute
    WHERE attrelid = to_regclass(:relation) AND attname = '{USER_ID}'
""")
RELATIONS = (USERS, INTERACTIONS, "exposures", "explored")
"""Compared with each other by user."""


@dataclass(frozen=True)
class UserIdColumn:
    """The column `user_id` of a table, and whether it is text."""

    column: sa.ColumnElement[Any]
    is_text: bool

    def decode(self, stored: list[Id], known: Ids) -> list[Id]:
        """Return ids of the column as an array of ids has them; the column may have become text since."""
        if known.dtype != np.int64:
            return list(map(str, stored))
        return list(keep_numbers(stored)) if self.is_text else stored

    def is_one_of(self, user_ids: Sequence[Id]) -> sa.ColumnElement[bool]:
        """Return the condition that a row is of one of the users."""
        wanted: list[Any] = list(map(str, user_ids)) if self.is_text else keep_numbers(user_ids)
        kind = sa.Text() if self.is_text else sa.BigInteger()
        return self.column == sa.any_(sa.cast(wanted, ARRAY(kind)))


def find_user_ids(connection: sa.Connection, table: sa.Table) -> UserIdColumn:
    """Return the column `user_id` of a table as it is now."""
    found = connection.scalar(COLUMN_TYPE, {"relation": f"{SCHEMA}.{table.name}"})
    return UserIdColumn(table.c.user_id, found == "text")


def take_user_ids(connection: sa.Connection, table: sa.Table, user_ids: Iterable[Id]) -> None:
    """Make the column `user_id` text if any of the ids to be written is text; ids that it has stay.

    While it is changed, no other transaction can use the table until this one ends.
    """
    if all(isinstance(each, int) for each in user_ids) or find_user_ids(connection, table).is_text:
        return
    connection.exec_driver_sql(
        f"ALTER TABLE {SCHEMA}.{table.name} ALTER COLUMN {USER_ID} TYPE text USING {USER_ID}::text"
    )


def user_id_cast(connection: sa.Connection) -> str:
    """Return the SQL cast by which ids of the views and of our tables compare: none for whole numbers."""
    found = {connection.scalar(COLUMN_TYPE, {"relation": f"{SCHEMA}.{relation}"}) for relation in RELATIONS}
    return "" if found <= {*WHOLE, None} else "::text"


def keep_numbers(values: Iterable[Id]) -> list[int]:
    """Return the whole numbers among ids, as Postgres's bigint has them."""
    numbers = (int(each) for each in values if isinstance(each, int) or NUMBER.fullmatch(each))
    return [number for number in numbers if -MAX_ID - 1 <= number <= MAX_ID]
