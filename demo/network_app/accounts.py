"""Accounts: who registers, with what profile, and who signs in.

A person is a row of the table "user", which the models learn from; name and password are in the table
account, which no view of `recs` reads.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from flask import abort
from werkzeug.security import check_password_hash, generate_password_hash

from console.sign_in import MAX_PASSWORD, MIN_PASSWORD, PasswordLimits, Tries
from contract.ids import Id
from contract.text import CONTROLS
from demo.network_app import activity
from demo.network_app.texts import InputError, clean_line

MAX_NAME = 40
FIRST_WORD = "person"
"""Of the names of people without an account: nobody registers under a name that begins so."""

MAX_VALUE = 60
"""Characters of an attribute that is text."""

MAX_OPTIONS, MAX_SUGGESTIONS = 20, 50
"""An attribute with at most so many values is chosen from them; of others, so many are suggested."""

REGISTRATIONS_SECONDS = 3600.0

INTEGERS = {"smallint": 2**15, "integer": 2**31, "bigint": 2**63}
"""Types of whole numbers, and the bound of their values."""

TEXTS = frozenset({"text", "character varying", "character"})
BOOLEAN = "boolean"
BOOLEANS = {"yes": True, "no": False}

_WHOLE_NUMBER = re.compile("-?[0-9]{1,19}")
_COLUMNS = sa.text("""
    SELECT attname AS name, format_type(atttypid, NULL) AS type,
        information_schema._pg_char_max_length(atttypid, atttypmod) AS max_length
    FROM pg_attribute
    WHERE attrelid = to_regclass('"user"') AND attnum > 0 AND NOT attisdropped
        AND attname <> :key AND attgenerated = '' AND attidentity = ''
    ORDER BY attnum
""")
_INSERT = sa.text(
    "INSERT INTO account (user_id, name, name_key, password_hash) VALUES (:user, :name, :key, :hash) "
    "ON CONFLICT (name_key) DO NOTHING RETURNING epoch"
)
_FIND = sa.text("SELECT user_id, epoch, password_hash FROM account WHERE name_key = :key")
_IS_TAKEN = sa.text("SELECT 1 FROM account WHERE name_key = :key")
_SIGN_OUT = sa.text("UPDATE account SET epoch = epoch + 1 WHERE user_id = :user")


@dataclass(frozen=True)
class Attribute:
    """An attribute of people: a column of the table "user".

    Attributes
    ----------
    type
        `text`, `number` or `boolean`.
    options
        The values to choose from; empty if any may be written.
    suggestions
        The most frequent values if any may be written.
    bounds
        Of a number: the least and the greatest value that the type allows.
    usual
        Of a number: the least and the greatest value there is, if any.
    max_length
        Of a text, in characters.
    """

    name: str
    type: str
    options: tuple[str, ...] = ()
    suggestions: tuple[str, ...] = ()
    bounds: tuple[int, int] = (0, 0)
    usual: tuple[int, int] | None = None
    max_length: int = MAX_VALUE

    @property
    def field(self) -> str:
        """The name of its field in a form."""
        return f"profile.{self.name}"

    @property
    def label(self) -> str:
        """What pages call it."""
        return self.name.replace("_", " ")

    def parse(self, text: str) -> str | int | bool | None:
        """Return the value that was typed or chosen; None for an empty field.

        Raises
        ------
        InputError
        """
        if not text.strip():
            return None
        if self.options:
            if text not in self.options:
                raise InputError("Choose one of the list.")
            return BOOLEANS[text] if self.type == "boolean" else text
        if self.type == "text":
            return clean_line(text, self.max_length, self.label)
        found = _WHOLE_NUMBER.fullmatch(text.strip())
        least, greatest = self.bounds
        if found is None or not least <= int(found[0]) <= greatest:
            raise InputError(f"Write a whole number from {least:,} to {greatest:,}, or nothing.")
        return int(found[0])

    def format(self, value: Any) -> str:
        """Return a value of the table as `parse` reads it."""
        if value is None:
            return ""
        return ("yes" if value else "no") if self.type == "boolean" else str(value)


class NameTakenError(Exception):
    """Raised when somebody has the name already, in whatever case."""


class Accounts:
    """Who registers and signs in; one per process."""

    def __init__(self, engine: sa.Engine, user_key: str, max_registrations: int) -> None:
        self._engine = engine
        self._user_key = user_key
        self._registrations = Tries(max_registrations, REGISTRATIONS_SECONDS)
        self._limits = PasswordLimits()
        self._hash_of_nobody = generate_password_hash("", method="scrypt")

    @cached_property
    def attributes(self) -> tuple[Attribute, ...]:
        """The attributes of people that a form can ask for, in the order of the table."""
        with self._engine.connect() as connection:
            columns = connection.execute(_COLUMNS, {"key": self._user_key}).all()
            found = [_make_attribute(connection, *column) for column in columns]
        return tuple(attribute for attribute in found if attribute is not None)

    def register(self, name: str, password: str, profile: Mapping[str, Any], address: str) -> tuple[Id, int]:
        """Register a person in one transaction; return id and epoch. 429 after too many registrations.

        Parameters
        ----------
        name, password, profile
            As `check_name`, `check_password` and `Attribute.parse` return them.

        Raises
        ------
        NameTakenError
        """
        key = make_name_key(name)
        with self._engine.connect() as connection:
            if connection.execute(_IS_TAKEN, {"key": key}).first() is not None:
                raise NameTakenError
        if not self._registrations.begin(address):
            abort(429, "Too many people registered from your address within an hour. Try again later.")
        try:
            with self._limits.hash_one():
                hashed = generate_password_hash(password, method="scrypt")
            return self._insert(name, key, hashed, profile)
        except BaseException:
            self._registrations.withdraw(address)
            raise

    def sign_in(self, name: str, password: str, address: str) -> tuple[Id, int] | None:
        """Return id and epoch of the account if the password is right; 429 after too many wrong ones.

        An unknown name takes as long as a known one.
        """
        key = make_name_key(name)
        found = self._limits.check(key, address, lambda: self._find(key, password))
        if found is not None:
            with self._engine.begin() as connection:
                activity.record(connection, found[0], "sign_in")
        return found

    def read_profile(self, connection: sa.Connection, user_id: Id) -> dict[str, str]:
        """Return a person's attributes as texts that `Attribute.parse` reads."""
        table, key = self._user_table()
        columns = [table.c[attribute.name] for attribute in self.attributes]
        row = connection.execute(sa.select(key, *columns).where(key == user_id)).first()
        values = [] if row is None else row[1:]
        return {each.name: each.format(value) for each, value in zip(self.attributes, values, strict=False)}

    def update_profile(self, user_id: Id, profile: Mapping[str, Any]) -> None:
        """Set attributes of a person."""
        table, key = self._user_table()
        with self._engine.begin() as connection:
            if profile:
                connection.execute(sa.update(table).where(key == user_id).values(_bind(table, profile)))
            activity.record(connection, user_id, "profile")

    def sign_out_everywhere(self, user_id: Id) -> None:
        """End all sessions of an account."""
        with self._engine.begin() as connection:
            connection.execute(_SIGN_OUT, {"user": user_id})

    def _find(self, key: str, password: str) -> tuple[Id, int] | None:
        with self._engine.connect() as connection:
            row = connection.execute(_FIND, {"key": key}).first()
        hashed = self._hash_of_nobody if row is None else row.password_hash
        right = len(password) <= MAX_PASSWORD and check_password_hash(hashed, password)
        return None if row is None or not right else (activity.plain_id(row.user_id), row.epoch)

    def _insert(self, name: str, name_key: str, hashed: str, profile: Mapping[str, Any]) -> tuple[Id, int]:
        table, key = self._user_table()
        insert = sa.insert(table).returning(key)
        given = {column: value for column, value in profile.items() if value is not None}
        with self._engine.begin() as connection:
            user_id = activity.plain_id(connection.scalar(insert.values(_bind(table, given))))
            row = {"user": user_id, "name": name, "key": name_key, "hash": hashed}
            epoch = connection.execute(_INSERT, row).scalar()
            if epoch is None:  # somebody else took it just now
                raise NameTakenError
            activity.record(connection, user_id, "register")
        return user_id, epoch

    def _user_table(self) -> tuple[sa.TableClause, sa.ColumnClause[Any]]:
        """Return the table "user" and its key."""
        names = [self._user_key, *(attribute.name for attribute in self.attributes)]
        table = sa.table("user", *map(sa.column, names))
        return table, table.c[self._user_key]


def make_name_key(name: str) -> str:
    """Return what two names share that look the same: without case and characters that nobody sees."""
    seen = (each for each in unicodedata.normalize("NFKC", name) if unicodedata.category(each) != "Cf")
    return " ".join("".join(seen).casefold().split())


def check_name(text: str) -> str:
    """Return a name without control characters and needless blanks.

    Raises
    ------
    InputError
    """
    name = clean_line(text, MAX_NAME, "name")
    if make_name_key(name).split()[:1] == [FIRST_WORD]:
        raise InputError(f"Names of people without an account begin with {FIRST_WORD}: choose another name.")
    return name


def check_password(text: str) -> str:
    """Return a password that may be somebody's.

    Raises
    ------
    InputError
    """
    if not MIN_PASSWORD <= len(text) <= MAX_PASSWORD:
        raise InputError(f"The password must have {MIN_PASSWORD} to {MAX_PASSWORD} characters.")
    return text


def parse_profile(
    attributes: Iterable[Attribute], form: Mapping[str, str], problems: dict[str, str]
) -> dict[str, Any]:
    """Return the value of each attribute that a form has; None for empty fields.

    What is wrong with a field is added to `problems` under the field's name.
    """
    profile = {}
    for attribute in attributes:
        try:
            profile[attribute.name] = attribute.parse(form.get(attribute.field, ""))
        except InputError as error:
            problems[attribute.field] = str(error)
    return profile


def _bind(table: sa.TableClause, profile: Mapping[str, Any]) -> dict[Any, Any]:
    """Return columns -> parameters, whose names are ours: those of columns may hold any character."""
    return {
        table.c[column]: sa.bindparam(f"value_{number}", value)
        for number, (column, value) in enumerate(profile.items())
    }


def _make_attribute(
    connection: sa.Connection, name: str, type_name: str, max_length: int | None
) -> Attribute | None:
    """Return the attribute of a column; None if no form can ask for values of its type."""
    column: sa.ColumnClause[Any] = sa.column(name)
    table = sa.table("user", column)
    if type_name == BOOLEAN:
        return Attribute(name, "boolean", tuple(BOOLEANS))
    if type_name in INTEGERS:
        bound = INTEGERS[type_name]
        least, greatest = connection.execute(
            sa.select(sa.func.min(column), sa.func.max(column)).select_from(table)
        ).one()
        usual = None if least is None else (least, greatest)
        return Attribute(name, "number", bounds=(-bound, bound - 1), usual=usual)
    if type_name not in TEXTS:
        return None
    most = min(max_length or MAX_VALUE, MAX_VALUE)
    query = (
        sa.select(column)
        .select_from(table)
        .where(column.is_not(None))
        .group_by(column)
        .order_by(sa.func.count().desc(), column)
        .limit(MAX_SUGGESTIONS)
    )
    found = list(connection.scalars(query))
    values = tuple(value for value in found if value.strip() and not _is_odd(value, most))
    few = len(values) == len(found) <= MAX_OPTIONS
    if few:
        return Attribute(name, "text", options=tuple(sorted(values)), max_length=most)
    return Attribute(name, "text", suggestions=values, max_length=most)


def _is_odd(value: str, max_length: int) -> bool:
    """Return whether a form would not send a value back as it is."""
    return len(value) > max_length or CONTROLS.search(value) is not None or "\n" in value
