"""Checks of what a request brings. Each raises the 400 that names the parameter at fault."""

from __future__ import annotations

import re
from datetime import datetime

from werkzeug.datastructures import MultiDict

from serving.cursor import Cursor, decode_cursor
from serving.problems import bad_parameter

MAX_ID = 2**63 - 1
DEFAULT_LIMIT = 5
LONGEST_TIME = 40

# Not \d and not str.isdigit: both take digits of other scripts as well.
_DIGITS = re.compile(r"[0-9]{1,19}")


def single(arguments: MultiDict[str, str], name: str) -> str | None:
    """Return a query parameter's text, None when it is not given; given twice it is refused."""
    values = arguments.getlist(name)
    if len(values) > 1:
        raise bad_parameter(name, "must be given once")
    return values[0] if values else None


def parse_id(name: str, text: str | None) -> int:
    """Return a user's or a post's id: a whole number from 0 to 2^63 - 1."""
    if text is None:
        raise bad_parameter(name, "is missing: give a user's id")
    if not _DIGITS.fullmatch(text) or int(text) > MAX_ID:
        raise bad_parameter(name, f"must be a whole number from 0 to {MAX_ID}")
    return int(text)


def parse_limit(text: str | None, most: int) -> int:
    """Return how many posts are wanted: 1 to `most`; 5 (or `most`, if less) when not given."""
    if text is None:
        return min(DEFAULT_LIMIT, most)
    if not _DIGITS.fullmatch(text) or not 1 <= int(text) <= most:
        raise bad_parameter("limit", f"must be a whole number from 1 to {most}")
    return int(text)


def parse_cursor(text: str | None, user_id: int) -> Cursor | None:
    """Return the place in a list that an earlier answer to this user pointed at."""
    if text is None:
        return None
    try:
        return decode_cursor(text, user_id)
    except ValueError:
        raise bad_parameter("cursor", "must be the next_cursor of an earlier answer to this user") from None


def check_time(text: str | None) -> None:
    """Refuse a time that is not one.

    Existing clients send the time of the request. The lists are made at night
    and do not depend on it, so it is checked and not used, and may be left out.
    """
    if text is None:
        return
    try:
        # Python's parser lets a NUL and digits of other scripts through.
        if len(text) > LONGEST_TIME or not text.isascii() or not text.isprintable():
            raise ValueError
        datetime.fromisoformat(text)
    except ValueError:
        raise bad_parameter("time", "must be an ISO 8601 time, like 2021-12-29T21:00:00") from None
