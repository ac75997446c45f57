"""Popular posts by segment: the most liked posts of the users with one value of an attribute.

Users without a list of their own get them in place of the overall popular posts, see OVERNIGHT_POPULAR_BY.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from batch.arrays import Float64s, Int32s, Int64s
from batch.loading.history import History
from batch.loading.model_columns import CATEGORICAL
from batch.loading.network import Network
from batch.loading.period_counts import USER_RANGE
from batch.loading.schema import WHOLE
from contract.columns import LIKE_ACTION, SCHEMA, USERS
from contract.errors import SourceError
from contract.ids import is_text_id

log = logging.getLogger("batch")

MAX_SEGMENTS = 100
"""Each has a list of OVERNIGHT_TOP_N posts in the memory of every worker of serving."""

LIKES = f"""
    SELECT user_row, post_row FROM {{known}}
    WHERE {USER_RANGE} AND action = '{LIKE_ACTION}' AND happened_at <= $until
"""

Segments = dict[str, list[tuple[int, float]]]
"""Value of the attribute -> (row of the post, likes by its users), most liked first.

Likes are counted as the overall popular posts count logged ones: each like as of the cutoff, also a user's
second like of a post.
"""


def check_attribute(types: Mapping[str, str], name: str, ignored: str) -> None:
    """Check that users can be grouped by an attribute.

    Parameters
    ----------
    types
        Column of recs.users -> Postgres type.
    ignored
        Columns that are not read, as in OVERNIGHT_IGNORE_COLUMNS.

    Raises
    ------
    SourceError
        The view lacks the column, its type has no distinct values, or it is not read.
    """
    relation, advice = f"{SCHEMA}.{USERS}", "correct OVERNIGHT_POPULAR_BY, or leave it empty"
    if name not in types:
        raise SourceError(f"{relation} has no column {name} to find popular posts by; {advice}")
    if types[name] not in WHOLE + CATEGORICAL:
        raise SourceError(
            f"{relation}.{name} is of type {types[name]}; popular posts are found by text, boolean or whole "
            f"numbers only; {advice}"
        )
    if f"{USERS}.{name}" in ignored.split(","):
        raise SourceError(
            f"OVERNIGHT_IGNORE_COLUMNS leaves out {USERS}.{name}, which OVERNIGHT_POPULAR_BY needs; remove "
            "it from one of the two"
        )


def find_popular_posts(
    network: Network, history: History, excluded: Int64s, *, name: str, n: int
) -> Segments:
    """Find the n most liked posts of the users with each value of an attribute.

    Ties go to the post that comes first in the network. Posts that nobody of a segment likes follow, in the
    order of the overall popular posts, with 0 likes.

    Parameters
    ----------
    history
        As of the run's cutoff.
    excluded
        Rows of posts that are left out.
    name
        Column of the users.

    Returns
    -------
    The MAX_SEGMENTS values with the most users, those first.
    """
    values, of_user = find_segments(network.users[name])
    overall = history.post_counts["likes"].to_numpy(np.float64)
    counts = _count_likes(history, of_user, len(values), overall.size)
    rows = np.setdiff1d(np.arange(overall.size), excluded)
    return {
        value: [(int(row), float(liked[row])) for row in _order(liked[rows], overall[rows], rows)[:n]]
        for value, liked in zip(values, counts, strict=True)
    }


def find_segments(column: pd.Series[Any]) -> tuple[list[str], Int32s]:
    """Return the values with the most users, and (users,) the index of each user's value; -1 for none.

    Null is no value, and neither is text that a request cannot name (empty, over 128 characters, or with
    control characters).
    """
    texts = column.map(format_value, na_action="ignore")
    users = texts[texts.map(is_text_id, na_action="ignore").fillna(False).astype(bool)].value_counts()
    order = sorted(users.index, key=lambda value: (-users[value], value))
    values = order[:MAX_SEGMENTS]
    if len(order) > MAX_SEGMENTS:
        others = int(users[order[MAX_SEGMENTS:]].sum())
        log.warning(
            "%s has %d values; the %d with the most users get popular posts of their own, %d users with "
            "other values get those of all users",
            column.name, len(order), MAX_SEGMENTS, others,
        )  # fmt: skip
    index = {value: row for row, value in enumerate(values)}
    return values, texts.map(lambda text: index.get(text, -1), na_action="ignore").fillna(-1).to_numpy(
        np.int32
    )


def format_value(value: Any) -> str:
    """Write a value of an attribute as requests name it: `true`, `7` (never `7.0`), or the text."""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _count_likes(history: History, of_user: Int32s, segments: int, posts: int) -> npt.NDArray[np.int32]:
    """Count the likes of each post by the users of each segment: (segments, posts).

    They are read by ranges of users, which bounds the memory.
    """
    counts, store = np.zeros(segments * posts, np.int32), history.store
    query = LIKES.format(known=store.known_at(history.cutoff))
    for start, stop in store.user_ranges():
        found = store.arrays(query, {"start": start, "stop": stop, "until": history.cutoff})
        segment = of_user[found["user_row"]].astype(np.int64)
        np.add.at(counts, (segment * posts + found["post_row"])[segment >= 0], 1)
    store.release()
    return counts.reshape(segments, posts)


def _order(liked: npt.NDArray[np.int32], overall: Float64s, rows: Int64s) -> Int64s:
    """Return the rows of posts by likes in the segment; posts without any by the likes of all users."""
    ordered: Int64s = rows[np.lexsort((rows, np.where(liked > 0, 0, -overall), -liked))]
    return ordered
