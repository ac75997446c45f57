"""Where a page of a table begins: after the time and the key of the last row of the page before."""

from __future__ import annotations

from datetime import datetime

SEPARATOR = "~"


def format_position(at: datetime, key: str) -> str:
    """Return a position as a query argument."""
    return f"{at.isoformat()}{SEPARATOR}{key}"


def parse_position(text: str) -> tuple[datetime, str] | None:
    """Return the position of a query argument; None if it is empty, which is the first page.

    Raises
    ------
    LookupError
        It is not what `format_position` makes: there is no such page.
    """
    if not text:
        return None
    time, _, key = text.partition(SEPARATOR)
    try:
        at = datetime.fromisoformat(time)
    except ValueError:
        raise LookupError(text) from None
    if at.tzinfo is None:
        raise LookupError(text)
    return at, key
