"""Load the first real network from a folder of files into Postgres.

| file | loaded as |
|---|---|
| users.csv.gz | "user" |
| posts.csv.gz, post_features.parquet | post |
| history_users.csv.gz | views and likes, unchanged |
| views_evening.csv.gz | views, and for each with target 1 a like at the time of the view |
| liked_views.parquet | likes without views: the files lack the other views of these users |

A view in two files (same user, post and second) is loaded once. Times have no
zone in the files and are read as UTC.
"""

from __future__ import annotations

import logging
import zlib
from datetime import datetime
from pathlib import Path

import pandas as pd

from contract.columns import LIKE_ACTION, VIEW_ACTION
from demo import network
from demo.dates import count_shift_days
from demo.network import NetworkError

logger = logging.getLogger(__name__)

WHOLE = "whole number"
NUMBER = "whole number or nothing"
TEXT = "text"
TIME = "time, UTC"

USERS = "users.csv.gz"
POSTS = "posts.csv.gz"
POST_FEATURES = "post_features.parquet"
HISTORY = "history_users.csv.gz"
EVENING = "views_evening.csv.gz"
LIKED = "liked_views.parquet"

USER_TYPES = {
    "user_id": WHOLE,
    "gender": NUMBER,
    "age": NUMBER,
    "country": TEXT,
    "city": TEXT,
    "exp_group": NUMBER,
    "os": TEXT,
    "source": TEXT,
}
POST_TYPES = {
    "post_id": WHOLE,
    "text": TEXT,
    "topic": TEXT,
    "text_length": NUMBER,
    "views_total": NUMBER,
    "likes_total": NUMBER,
}
EVENT_TYPES = {"timestamp": TIME, "user_id": WHOLE, "post_id": WHOLE}
ACTION = {"action": TEXT}
TARGET = {"target": WHOLE}

VIEW_KEY = ["user_id", "post_id", "timestamp"]
"""Columns that identify a view."""


def load_network(database_url: str, folder: Path, until: datetime | None = None) -> int:
    """Replace the network in the database by that of the files in `folder`; return the shift of its dates.

    Raises
    ------
    NetworkError
        If a file or column is missing, cannot be read, or has invalid values; names it.
    """
    users = read_file(folder / USERS, USER_TYPES)[[*USER_TYPES]].rename(columns={"user_id": "id"})
    check_ids(folder / USERS, users["id"])
    posts, features = _read_posts(folder)
    actions = _read_feed_actions(folder)
    shift_days = count_shift_days(actions["time"].max().to_pydatetime(), until)
    actions["time"] += pd.Timedelta(days=shift_days)
    with network.transaction(database_url) as connection:
        network.create_tables(connection, _post_table_ddl(features))
        network.copy_frame(connection, '"user"', users)
        network.copy_frame(connection, "post", posts)
        network.copy_frame(connection, network.FEED_ACTION, actions)
        network.create_views(connection, _post_columns(features))
    counts = actions["action"].value_counts()
    logger.info(
        "loaded %s users, %s posts, %s views and %s likes",
        *(f"{n:,}" for n in (len(users), len(posts), counts[VIEW_ACTION], counts[LIKE_ACTION])),
    )
    return shift_days


def _read_posts(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of the table post, and the names of the features of POST_FEATURES."""
    posts = read_file(folder / POSTS, POST_TYPES)[[*POST_TYPES]]
    check_ids(folder / POSTS, posts["post_id"])
    features = read_file(folder / POST_FEATURES, {"post_id": WHOLE})
    check_ids(folder / POST_FEATURES, features["post_id"])
    names = [str(name) for name in features if name != "post_id"]
    invalid = [
        name for name in names if not name.isidentifier() or not pd.api.types.is_numeric_dtype(features[name])
    ]
    if invalid:
        raise NetworkError(
            f"{folder / POST_FEATURES}: the column {invalid[0]!r} is not a number with a plain name"
        )
    posts = posts.merge(features, on="post_id", how="left", validate="one_to_one")
    return posts.rename(columns={"post_id": "id"}), names


def _read_feed_actions(folder: Path) -> pd.DataFrame:
    """Return the rows of feed_action, ordered by time, user, and view before like."""
    history = read_file(folder / HISTORY, EVENT_TYPES | ACTION)
    evening = read_file(folder / EVENING, EVENT_TYPES | TARGET)
    liked = read_file(folder / LIKED, EVENT_TYPES)
    check_values(folder / HISTORY, history["action"], {VIEW_ACTION, LIKE_ACTION})
    check_values(folder / EVENING, evening["target"], {0, 1})
    views = history[history["action"] == VIEW_ACTION]
    new_evening = _exclude_views(evening, views)
    new_liked = _exclude_views(liked, pd.concat([views[VIEW_KEY], evening[VIEW_KEY]]))
    logger.info(
        "skipped %d rows of %s and %d rows of %s that repeat another file's view",
        len(evening) - len(new_evening), EVENING, len(liked) - len(new_liked), LIKED,
    )  # fmt: skip
    tables = [
        history,
        new_evening.assign(action=VIEW_ACTION),
        new_evening[new_evening["target"] == 1].assign(action=LIKE_ACTION),
        new_liked.assign(action=LIKE_ACTION),
    ]
    actions = pd.concat([table[[*VIEW_KEY, "action"]] for table in tables])
    # Descending by action puts a view before a like of the same time.
    actions = actions.sort_values(
        ["timestamp", "user_id", "action"], ascending=[True, True, False], kind="stable"
    )
    return actions.rename(columns={"timestamp": "time"})


def _exclude_views(rows: pd.DataFrame, views: pd.DataFrame) -> pd.DataFrame:
    """Drop the rows whose user, post and time are in `views`."""
    keys = pd.MultiIndex.from_frame(rows[VIEW_KEY])
    return rows[~keys.isin(pd.MultiIndex.from_frame(views[VIEW_KEY]))]


def _post_table_ddl(features: list[str]) -> str:
    columns = "".join(f",\n    {name} double precision" for name in features)
    return f"""
CREATE TABLE post (
    id bigint PRIMARY KEY, text text, topic text, text_length integer,
    views_total bigint, likes_total bigint{columns}
)"""


def _post_columns(features: list[str]) -> dict[str, str]:
    """Return the columns of the view of posts -> those of the table post."""
    named = {"post_id": "id", "view_count": "views_total", "like_count": "likes_total"}
    return named | {name: name for name in ("topic", "text", "text_length", *features)}


def read_file(path: Path, types: dict[str, str]) -> pd.DataFrame:
    """Read a CSV or Parquet file and convert the named columns to their types.

    Parameters
    ----------
    types
        WHOLE, NUMBER, TEXT or TIME by column; other columns are not converted.

    Raises
    ------
    NetworkError
        If the file is missing or damaged, or lacks a column, or a value is not of its type.
    """
    try:
        if path.suffix == ".parquet":
            rows = pd.read_parquet(path)
        else:
            rows = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise NetworkError(f"{path} is missing; a real network's folder must hold it") from None
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise NetworkError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    for column, kind in types.items():
        if column not in rows:
            raise NetworkError(f"{path} lacks the column {column!r}")
        try:
            rows[column] = _convert(rows[column], kind)
        except (ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise NetworkError(f"{path}: {column!r} must be a {kind}: {reason}") from error
    return rows


def check_ids(path: Path, ids: pd.Series[int]) -> None:
    """Raise NetworkError if an id is not unique."""
    duplicates = ids[ids.duplicated()]
    if not duplicates.empty:
        raise NetworkError(
            f"{path} has {duplicates.nunique()} ids more than once, first {duplicates.iloc[0]}"
        )


def check_values(path: Path, values: pd.Series, allowed: set[object]) -> None:
    """Raise NetworkError if a value is not in `allowed`."""
    invalid = values[~values.isin(allowed)]
    if not invalid.empty:
        names = " or ".join(sorted(map(str, allowed)))
        raise NetworkError(f"{path}: {values.name!r} must be {names}, not {invalid.iloc[0]}")


def parse_times(values: pd.Series) -> pd.Series:
    """Parse times in ISO 8601, to the microsecond; without an offset they are in UTC; null stays null.

    Raises
    ------
    ValueError
        If a value is not in ISO 8601; names the first.
    """
    times = pd.to_datetime(values, utc=True, format="ISO8601", errors="coerce")
    invalid = values[times.isna() & values.notna()]
    if not invalid.empty:
        raise ValueError(f"{invalid.iloc[0]!r} is not in ISO 8601")
    return times.astype("datetime64[us, UTC]")


def _convert(values: pd.Series, kind: str) -> pd.Series:
    if kind == TEXT:
        return values
    if kind == TIME:
        times = parse_times(values)
        if times.isna().any():
            raise ValueError("a time is missing")
        return times
    return pd.to_numeric(values).astype("int64" if kind == WHOLE else "Int64")
