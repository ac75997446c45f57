"""Reads users and posts from Postgres, and checks their rows."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa

from batch.arrays import Int64s
from batch.ids import Ids, rows_of_ids
from batch.loading.cohorts import Cohorts
from batch.loading.model_columns import CATEGORICAL, NUMERIC
from batch.loading.schema import (
    PADDED,
    TIMES,
    Columns,
    check_views,
    find_unknown_columns,
    kind_of_ids,
)
from contract import columns
from contract.errors import SourceError
from contract.ids import MAX_LENGTH, IdKind, IdKinds, is_text_id
from contract.text import escape_line

log = logging.getLogger("batch")

ROWS_BATCH = 50_000


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
        (None, NaT or NaN if the view lacks them), then one per post feature. `author_id`, if the view
        has it, is the id of a user or null: Int64 for whole numbers, else object.
    types
        View -> column -> Postgres type, of the columns read from `users` and `posts`.
    kinds
        Kinds of the ids.
    """

    users: pd.DataFrame
    posts: pd.DataFrame
    types: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)
    kinds: IdKinds = field(default_factory=IdKinds)

    @property
    def user_ids(self) -> Ids:
        """(users,) id of each row."""
        return _to_ids(self.users.index, self.kinds.users)

    @property
    def post_ids(self) -> Ids:
        """(posts,) id of each row."""
        return _to_ids(self.posts.index, self.kinds.posts)

    @cached_property
    def cohorts(self) -> Cohorts:
        """Codes of the users' attributes."""
        return Cohorts.fit(self.users)


def _to_ids(index: pd.Index[Any], kind: IdKind) -> Ids:
    return index.to_numpy(np.int64 if kind is IdKind.NUMBER else object)


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
        A view or column is missing or of the wrong type, an id is null,
        duplicated or no usable text, or there are no users or no posts.
    """
    views = check_views(connection)
    if ignored:
        views = _leave_out(views, ignored)
    users = _read(connection, columns.USERS, columns.USER_ID, views.users)
    posts = _add_missing_columns(_read(connection, columns.POSTS, columns.POST_ID, views.posts))
    if columns.AUTHOR_ID in posts and views.kinds.users is IdKind.NUMBER:
        authors = [None if pd.isna(text) else int(text) for text in posts[columns.AUTHOR_ID]]
        posts[columns.AUTHOR_ID] = pd.array(authors, dtype="Int64")  # as float64, large ids would be rounded
    posts = posts[~(posts[columns.CREATED_AT] > pd.Timestamp(until))]
    if posts.empty:
        raise SourceError(f"no post of {columns.SCHEMA}.{columns.POSTS} was created by {until.isoformat()}")
    types = {columns.USERS: _read_types(views.users, users), columns.POSTS: _read_types(views.posts, posts)}
    types[columns.POSTS].pop(columns.AUTHOR_ID, None)  # no model knows it
    return Network(users, posts, types, views.kinds)


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
    wanted = [column for column, type_ in types.items() if _is_usable(view, column, type_) or column == key]
    for column in [column for column in types if column not in wanted]:
        log.warning("%s.%s is of type %s and is left out; cast it to use it", relation, column, types[column])
    query = _select(view, key, wanted, kind_of_ids(types[key]))
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
    if kind_of_ids(types[key]) is IdKind.NUMBER:
        frame[key] = frame[key].astype(np.int64)
    else:  # sorted here: the order in Postgres depends on the collation
        frame = frame.astype({key: object}).sort_values(key, ignore_index=True)
        _check_texts(frame[key], relation)
    duplicates = frame.loc[frame[key].duplicated(), key]
    if not duplicates.empty:
        raise SourceError(
            f"{relation} has {duplicates.nunique()} ids more than once, first {key} "
            f"{escape_line(str(duplicates.iloc[0]))}; make the view return one row per id"
        )
    return frame.set_index(key)


def _select(view: str, key: str, names: list[str], kind: IdKind) -> sa.Select[Any]:
    """Select columns of a view: authors as text, and ids that are not whole numbers; the others by id."""
    source = sa.table(view, *(sa.column(name) for name in names), schema=columns.SCHEMA)
    as_text = {columns.AUTHOR_ID} if view == columns.POSTS else set()
    if kind is not IdKind.NUMBER:
        as_text.add(key)
    query = sa.select(
        *(
            sa.cast(source.c[name], sa.Text).label(name) if name in as_text else source.c[name]
            for name in names
        )
    )
    return query if key in as_text else query.order_by(source.c[key])


def _check_texts(ids: pd.Series[Any], relation: str) -> None:
    wrong = [text for text in ids if not is_text_id(text)]
    if wrong:
        raise SourceError(
            f"{relation} has {len(wrong)} ids that are empty, longer than {MAX_LENGTH} characters or with "
            f"control characters, first {ids.name} '{escape_line(wrong[0])}'; leave them out in the view"
        )


def _is_usable(view: str, column: str, kind: str) -> bool:
    is_creation_time = view == columns.POSTS and column == columns.CREATED_AT and kind in TIMES
    is_author = view == columns.POSTS and column == columns.AUTHOR_ID
    return is_creation_time or is_author or kind in NUMERIC + CATEGORICAL


def _convert_types(block: pd.DataFrame, types: dict[str, str], key: str) -> pd.DataFrame:
    """Convert every column but the key to the same type in all blocks: float64, object or UTC time."""
    for column in block.columns:
        if column == key:
            continue
        if key == columns.POST_ID and column == columns.AUTHOR_ID:
            block[column] = block[column].astype(object)
        elif types[column] in TIMES:
            block[column] = pd.to_datetime(block[column], utc=True)
        elif types[column] in NUMERIC:
            block[column] = block[column].astype(np.float64)
        elif types[column] == PADDED:
            stripped = block[column].map(lambda text: text.rstrip(" "), na_action="ignore")
            block[column] = stripped.astype(object)
        else:
            block[column] = block[column].astype(object)
        if key == columns.USER_ID and block[column].dtype == object:
            block[column] = _share_strings(block[column])
    return block


def _share_strings(values: pd.Series[Any]) -> pd.Series[Any]:
    """Return the values with one object for all equal strings; the driver made one for each row."""
    shared = [sys.intern(value) if type(value) is str else value for value in values]
    return pd.Series(shared, values.index, dtype=object)


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
    rows = rows_of_ids(known, ids.fillna(known[0]).to_numpy(known.dtype))
    return np.where(ids.notna().to_numpy(), rows, -1)
