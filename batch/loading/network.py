"""Reads users and posts from Postgres, and checks their rows."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa

from batch.arrays import Int64s
from batch.ids import rows_of_ids
from batch.loading.cohorts import Cohorts
from batch.loading.model_columns import CATEGORICAL, NUMERIC
from batch.loading.schema import TIMES, Columns, check_views, find_unknown_columns
from contract import columns
from contract.errors import SourceError

log = logging.getLogger("batch")

ROWS_BATCH = 50_000

PADDED = "character"
"""Postgres fills char(n) with blanks, which are no part of the value."""


@dataclass(frozen=True)
class Network:
    """Users and posts of the network.

    Attributes
    ----------
    users
        Indexed by `user_id`, ascending and unique; a column per user feature.
    posts
        Indexed by `post_id`, ascending and unique; always with the columns
        `topic`, `text`, `created_at` (UTC), `like_count` and `view_count`
        (None, NaT or NaN if the view lacks them), then one per post feature.
    types
        View -> column -> Postgres type, of the columns read from `users` and `posts`.
    """

    users: pd.DataFrame
    posts: pd.DataFrame
    types: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)

    @cached_property
    def cohorts(self) -> Cohorts:
        """Codes of the users' attributes."""
        return Cohorts.fit(self.users)


def load_network(connection: sa.Connection, until: datetime, ignored: str = "") -> Network:
    """Read users and posts; leave out posts created after `until`.

    Parameters
    ----------
    ignored
        Columns that a model is to be trained without, like `users.logins,posts.shares`. A saved model
        needs those that it was trained with.

    Raises
    ------
    SourceError
        A view or column is missing or of the wrong type, an id is null or
        duplicated, or there are no users or no posts.
    """
    views = check_views(connection)
    if ignored:
        views = _leave_out(views, ignored)
    users = _read(connection, columns.USERS, columns.USER_ID, views.users)
    posts = _add_missing_columns(_read(connection, columns.POSTS, columns.POST_ID, views.posts))
    posts = posts[~(posts[columns.CREATED_AT] > pd.Timestamp(until))]
    if posts.empty:
        raise SourceError(f"no post of {columns.SCHEMA}.{columns.POSTS} was created by {until.isoformat()}")
    types = {columns.USERS: _read_types(views.users, users), columns.POSTS: _read_types(views.posts, posts)}
    return Network(users, posts, types)


def _leave_out(views: Columns, names: str) -> Columns:
    for name in find_unknown_columns(views, names):
        log.warning("OVERNIGHT_IGNORE_COLUMNS names %s.%s, which does not exist", columns.SCHEMA, name)
    ignored = names.split(",")
    kept = {
        view: {name: kind for name, kind in getattr(views, view).items() if f"{view}.{name}" not in ignored}
        for view in (columns.USERS, columns.POSTS)
    }
    return replace(views, **kept)


def _read_types(types: dict[str, str], frame: pd.DataFrame) -> dict[str, str]:
    return {column: kind for column, kind in types.items() if column in frame}


def _read(connection: sa.Connection, view: str, key: str, types: dict[str, str]) -> pd.DataFrame:
    relation = f"{columns.SCHEMA}.{view}"
    wanted = [column for column, kind in types.items() if _is_usable(view, column, kind)]
    for column in [column for column in types if column not in wanted]:
        kind = types[column]
        log.warning("%s.%s is of type %s and is left out; cast it to use it", relation, column, kind)
    source = sa.table(view, *(sa.column(name) for name in wanted), schema=columns.SCHEMA)
    query = sa.select(source).order_by(source.c[key])
    try:
        result = connection.execute(query, execution_options={"yield_per": ROWS_BATCH})
        blocks = [
            _convert_types(
                pd.DataFrame.from_records([tuple(row) for row in rows], columns=wanted), types, key
            )
            for rows in result.partitions(ROWS_BATCH)
        ]
    except ValueError as error:  # from the driver: a time before the year 1 or after 9999
        raise SourceError(
            f"{relation} has a value that cannot be read: {error}; correct it in the view"
        ) from None
    if not blocks:
        raise SourceError(f"{relation} has no rows; there is nothing to recommend")
    frame = pd.concat(blocks, ignore_index=True)
    if frame[key].isna().any():
        raise SourceError(
            f"{relation}.{key} is null in {int(frame[key].isna().sum())} rows; leave them out in the view"
        )
    frame[key] = frame[key].astype(np.int64)
    duplicates = frame.loc[frame[key].duplicated(), key]
    if not duplicates.empty:
        raise SourceError(
            f"{relation} has {duplicates.nunique()} ids more than once, first {key} {duplicates.iloc[0]}; "
            "make the view return one row per id"
        )
    return frame.set_index(key)


def _is_usable(view: str, column: str, kind: str) -> bool:
    is_creation_time = view == columns.POSTS and column == columns.CREATED_AT and kind in TIMES
    return is_creation_time or kind in NUMERIC + CATEGORICAL


def _convert_types(block: pd.DataFrame, types: dict[str, str], key: str) -> pd.DataFrame:
    """Convert every column but the key to the same type in all blocks: float64, object or UTC time."""
    for column in block.columns:
        if column == key:
            continue
        if types[column] in TIMES:
            block[column] = pd.to_datetime(block[column], utc=True)
        elif types[column] in NUMERIC:
            block[column] = block[column].astype(np.float64)
        elif types[column] == PADDED:
            stripped = block[column].map(lambda text: text.rstrip(" "), na_action="ignore")
            block[column] = stripped.astype(object)
        else:
            block[column] = block[column].astype(object)
    return block


def _add_missing_columns(posts: pd.DataFrame) -> pd.DataFrame:
    defaults: dict[str, Any] = {
        columns.TOPIC: None,
        columns.TEXT: None,
        columns.CREATED_AT: pd.NaT,
        columns.LIKE_COUNT: np.nan,
        columns.VIEW_COUNT: np.nan,
    }
    posts = posts.copy()
    for column, value in defaults.items():
        if column not in posts:
            posts[column] = value
    posts.loc[posts[columns.TOPIC] == "", columns.TOPIC] = None  # COPY as CSV does not distinguish the two
    posts[columns.CREATED_AT] = pd.to_datetime(posts[columns.CREATED_AT], utc=True)
    return posts


def rows_of_nullable_ids(frame: pd.DataFrame, ids: pd.Series[Any]) -> Int64s:
    """Return the row of each id in the frame, whose index ascends; -1 for unknown ids and nulls."""
    known = frame.index.to_numpy()
    rows = rows_of_ids(known, ids.fillna(known[0]).to_numpy(np.int64))
    return np.where(ids.notna().to_numpy(), rows, -1)
