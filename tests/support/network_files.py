"""Small networks in files, in every format that the demo loads."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from demo import course_files

Tables = dict[str, pa.Table]
Change = Callable[[Tables], None]

ODD = 'height in "cm" (100 %), größe'
UNREACHABLE = "postgresql://nobody@localhost:1/none"
WHEN = "2013-07-31 00:12:44"
EVENT = ["timestamp", "user_id", "post_id"]


def make_tables() -> Tables:
    """Return a network with features of every type, null values, and names and texts that need quoting."""
    users = {
        "age": [31, None, 7],
        "user_id": [3, 1, 2],
        ODD: [1.5, float("nan"), -2.0],
        "paying": [True, False, None],
        "city": ['The "City"', None, "a,\n\nb"],
    }
    posts = {
        "post_id": [10, 20],
        "topic": ["1", None],
        "text": ["Ends; with\\.\n\\.\n", None],
        "created_at": ["2013-01-01T00:00:00+02:00", None],
        "like_count": [5, None],
        "year": [2001, 1999],
    }
    interactions = {
        "happened_at": [WHEN, "2013-07-31T02:12:45.25+02:00", "2013-07-31"],
        "action": ["view", "like", "like"],
        "post_id": [10, 10, 77],
        "user_id": [1, 1, 2],
        "note": ["left", "out", None],
    }
    return {name: pa.table(rows) for name, rows in name_tables(users, posts, interactions).items()}


def name_tables(users: Any, posts: Any, interactions: Any) -> dict[str, Any]:
    """Return the three tables by name."""
    return {"users": users, "posts": posts, "interactions": interactions}


def write_network(folder: Path, ending: str, content: Tables) -> Path:
    """Write each table into a file with the ending; Parquet keeps times as times."""
    folder.mkdir(exist_ok=True)
    for name, rows in content.items():
        path = folder / f"{name}{ending}"
        if ending == ".parquet":
            pq.write_table(with_times(rows), path)
        else:
            open_file = gzip.open if ending.endswith("gz") else open
            with open_file(path, "wb") as file:
                pa.csv.write_csv(rows, file)
    return folder


def with_times(rows: pa.Table) -> pa.Table:
    """Convert the columns of times from text."""
    for index, name in enumerate(rows.column_names):
        if name in ("created_at", "happened_at"):
            times = pd.to_datetime(rows[name].to_pandas(), utc=True, format="ISO8601")
            rows = rows.set_column(index, name, pa.array(times.astype("datetime64[ns, UTC]")))
    return rows


def make_network_of_likes(users: int, posts: int, seed: int) -> Tables:
    """Return a network without optional columns, in which users with nearby ids like the same posts."""
    likes = [(user, (user * seed + step * step) % posts) for user in range(users) for step in range(6)]
    interactions = {
        "user_id": [user for user, _ in likes],
        "post_id": [post for _, post in likes],
        "action": ["like"] * len(likes),
        "happened_at": [f"2013-07-{1 + row % 28:02} 10:00:00" for row in range(len(likes))],
    }
    only_ids = {"user_id": list(range(users))}, {"post_id": list(range(posts))}
    return {name: pa.table(rows) for name, rows in name_tables(*only_ids, interactions).items()}


def with_column(table: str, column: str, *values: Any) -> Change:
    """Return a change that replaces a column and keeps as many rows as there are values."""

    def change(content: Tables) -> None:
        rows = content[table].slice(0, len(values))
        index = rows.column_names.index(column)
        content[table] = rows.set_column(index, column, pa.array(values))

    return change


def write_course_files(folder: Path) -> Path:
    """Write a few rows in the format of demo/course_files.py."""
    users = {"user_id": [7, 8, 9], "gender": [1, 0, 1], "age": [20, None, 31], "country": "Here"}
    more = {"city": [None, "There", None], "exp_group": [0, 1, 2], "os": "iOS", "source": "ads"}
    pd.DataFrame(users | more).to_csv(folder / course_files.USERS, index=False)
    posts = {"post_id": [1, 2], "text": ['One, "two"\n\nthree', None], "topic": ["tech", "movie"]}
    counters = {"text_length": [16, 40], "views_total": [100, 90], "likes_total": [10, 9]}
    pd.DataFrame(posts | counters).to_csv(folder / course_files.POSTS, index=False)
    pd.DataFrame({"post_id": [1], "pc0": [0.1], "tfidf_max": [2.5]}).to_parquet(
        folder / course_files.POST_FEATURES
    )
    history = [
        ("2021-12-29 21:20:00", 7, 1, "view", 1),
        ("2021-12-29 21:20:40", 7, 1, "like", 0),
        ("2021-12-29 21:21:00", 7, 2, "view", 0),
    ]
    pd.DataFrame(history, columns=[*EVENT, "action", "target"]).to_csv(
        folder / course_files.HISTORY, index=False
    )
    evening = [
        ("2021-12-29 21:20:00", 7, 1, "view", 1),  # also in history
        ("2021-12-29 21:30:00", 8, 2, "view", 1),
        ("2021-12-29 21:31:00", 8, 1, "view", 0),
    ]
    pd.DataFrame(evening, columns=[*EVENT, "action", "target"]).to_csv(
        folder / course_files.EVENING, index=False
    )
    liked = [
        ("2021-12-29 21:30:00", 8, 2, "view", 1),  # also in the evening
        ("2021-11-02 10:00:00", 8, 2, "view", 1),
        ("2021-11-01 09:00:00", 9, 1, "view", 1),
    ]
    rows = pd.DataFrame(liked, columns=[*EVENT, "action", "target"])
    rows.assign(timestamp=pd.to_datetime(rows.timestamp)).to_parquet(folder / course_files.LIKED)
    return folder
