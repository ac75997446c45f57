"""Shift the dates of a network by whole days, so that it ends now.

The hours of the day stay, and with them all that depends on them. Features take ages at the last interaction:
one interaction of today in a network of years ago would make every post as old.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

NOW = "now"
DAY = timedelta(days=1)


def parse_until(text: str) -> datetime:
    """Parse `now`, or a date or time in ISO 8601, in UTC unless it has an offset.

    Raises
    ------
    ValueError
        The text is neither.
    """
    if text == NOW:
        return datetime.now(UTC)
    time = datetime.fromisoformat(text)
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def count_shift_days(newest: datetime, until: datetime | None) -> int:
    """Return by how many days to shift a network so that it ends at `until`, or less than a day before.

    Parameters
    ----------
    newest
        Time of the last interaction.
    until
        None shifts by no days.
    """
    return 0 if until is None else (until - newest) // DAY
