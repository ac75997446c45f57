"""Ids of users and posts: whole numbers, uuids or text, and their forms in keys, requests and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import quote, unquote

from contract.columns import MAX_ID

Id = int | str
"""A whole number as int; a uuid as text of 36 characters in lower case; text as it is."""

MAX_LENGTH = 128
"""Most characters of an id that is text."""

UNENCODED = "@"
"""Kept in keys as it is, like letters, digits and `._~-`."""

_DIGITS = re.compile("[0-9]{1,19}")  # not \d and not str.isdigit: both accept digits of other scripts
_HEX = "-".join(f"[0-9a-f]{{{count}}}" for count in (8, 4, 4, 4, 12))
_UUID = re.compile(rf"{_HEX}|\{{{_HEX}\}}", re.IGNORECASE)
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and halves of surrogate pairs."""


class IdKind(StrEnum):
    """Of what kind the ids of users or of posts are."""

    NUMBER = "number"
    UUID = "uuid"
    TEXT = "text"


@dataclass(frozen=True)
class IdKinds:
    """Kinds of the ids of a network. A manifest without them is of a network with whole numbers."""

    users: IdKind = IdKind.NUMBER
    posts: IdKind = IdKind.NUMBER

    @classmethod
    def from_record(cls, record: Mapping[str, Any] | None) -> IdKinds:
        """Read what `to_record` returned; None gives whole numbers.

        Raises
        ------
        ValueError
            The record is anything else.
        """
        if record is None:
            return cls()
        if not isinstance(record, Mapping):
            raise ValueError(f'kinds of ids must be like {{"users": "uuid"}}, not {record!r:.80}')
        return cls(*(IdKind(record.get(name, IdKind.NUMBER)) for name in ("users", "posts")))

    def to_record(self) -> dict[str, str]:
        """Return the kinds as a manifest has them."""
        return {"users": str(self.users), "posts": str(self.posts)}


WHOLE_NUMBERS = IdKinds()


def parse_id(text: str, kind: IdKind) -> Id:
    """Parse an id as clients and operators write it.

    A uuid may be in any case, and in braces.

    Raises
    ------
    ValueError
        It is not of this kind; the message says what it must be, as in `must be a uuid`.
    """
    if kind is IdKind.NUMBER:
        if _DIGITS.fullmatch(text) and (number := int(text)) <= MAX_ID:
            return number
        raise ValueError(f"must be a whole number from 0 to {MAX_ID}")
    if kind is IdKind.UUID:
        if not _UUID.fullmatch(text):
            raise ValueError("must be a uuid, such as 0d5ee3b5-9d7c-4d36-8a2c-6f0a3a3c8a11")
        return text.strip("{}").lower()
    if not is_text_id(text):
        raise ValueError(f"must be text of 1 to {MAX_LENGTH} characters, none of them control characters")
    return text


def is_text_id(text: str) -> bool:
    """Return whether text may be the id of a user or a post."""
    return 0 < len(text) <= MAX_LENGTH and _CONTROLS.search(text) is None


def check_id(value: Any, kind: IdKind) -> Id:
    """Check an id that was read from JSON: a number for whole numbers, else text as `parse_id` returns it.

    Raises
    ------
    ValueError
        It is anything else.
    """
    if kind is IdKind.NUMBER:
        if type(value) is int and 0 <= value <= MAX_ID:
            return value
    elif isinstance(value, str) and parse_id(value, kind) == value:
        return value
    raise ValueError(f"{value!r:.40} is not an id of kind {kind}")


def encode_id(value: Id) -> str:
    """Return an id as keys and paths have it.

    All but letters, digits and `._~@-` are percent-encoded, as bytes of UTF-8.
    """
    return str(value) if isinstance(value, int) else quote(value, safe=UNENCODED)


def quote_id(value: Id) -> str:
    """Return an id as messages have it: in double quotes, as in JSON, if keys have it percent-encoded."""
    text = str(value)
    return text if encode_id(value) == text else json.dumps(text, ensure_ascii=False)


def decode_id(text: str, kind: IdKind) -> Id:
    """Decode what `encode_id` returned.

    Raises
    ------
    ValueError
        It is not an encoded id of this kind.
    """
    return parse_id(unquote(text, errors="strict"), kind)
