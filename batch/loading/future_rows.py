"""Whether so many interactions lie in the future that the times of the source must be wrong."""

from __future__ import annotations

from datetime import timedelta

from contract.columns import HAPPENED_AT, INTERACTIONS, SCHEMA

LAST_DAY = timedelta(days=1)
MIN_ROWS = 10
MAX_SHARE = 0.01
"""Share of the interactions of the last day and later. Few phones have a clock that is ahead."""

UNAFFECTED = "Likes among them are left out of lists; nothing is learnt from them until their time has come"
FIX = (
    f"if {HAPPENED_AT} has no time zone, it is read as UTC: convert it in the view, "
    f"for example {HAPPENED_AT} AT TIME ZONE 'Europe/Berlin'"
)


def describe_future_rows(future: int, last_day: int) -> str | None:
    """Describe the interactions in the future in one line; None if there are few.

    Parameters
    ----------
    future
        Number of interactions later than now.
    last_day
        Number of interactions of the last 24 hours.
    """
    if future < MIN_ROWS or future <= MAX_SHARE * (future + last_day):
        return None
    return (
        f"{future:,} interactions of {SCHEMA}.{INTERACTIONS} lie in the future, and {last_day:,} in the last "
        "24 hours: probably their times have no time zone and are not in UTC"
    )
