"""The three views for operators: their columns with the share that is missing, and the topics of posts.

Every query reads a bounded number of rows. Imports neither numpy nor pandas.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from batch.context import Stores
from batch.loading.schema import OPTIONAL, REQUIRED, column_types
from batch.postgres import limit_time
from contract.columns import POSTS, SCHEMA, TOPIC

SAMPLE_ROWS = 10_000
"""First rows of a view in which missing values are counted."""

TOPIC_ROWS = 200_000
"""Posts whose topics are counted."""

MAX_TOPICS = 50
MAX_COLUMNS = 200
"""Columns of a view that are described."""

FIX = "the views read slowly: see what they select from"


@dataclass(frozen=True)
class ViewColumn:
    """A column of a view.

    Attributes
    ----------
    use
        `required`, `known`, `attribute` or `ignored`: needed; one of those with a meaning of their own; any
        other, from which models make features; left out by OVERNIGHT_IGNORE_COLUMNS.
    rows, missing
        Rows of the sample, and those that are null in the column.
    """

    view: str
    column: str
    type: str
    use: str
    rows: int
    missing: int


@dataclass(frozen=True)
class TopicCount:
    """A topic, None for posts without one, and its posts."""

    topic: str | None
    posts: int


def describe_columns(stores: Stores) -> list[ViewColumn]:
    """Return the columns of the three views, in their order; a view that is missing has none.

    Missing values are those of the first `SAMPLE_ROWS` rows.

    Raises
    ------
    SourceError
        Postgres took too long.
    """
    ignored = set(stores.settings.night.ignore_columns.split(","))
    found = []
    with limit_time(stores.engine, "reading rows of the views", FIX) as connection:
        for view in REQUIRED:
            types = dict(list(column_types(connection, view).items())[:MAX_COLUMNS])
            if not types:
                continue
            names = [_quote(name) for name in types]
            counts = ", ".join(f"count({name})" for name in names)
            sample = f"SELECT {', '.join(names)} FROM {SCHEMA}.{view} LIMIT {SAMPLE_ROWS}"
            query = f"SELECT count(*), {counts} FROM ({sample}) AS sample"
            rows, *present = connection.exec_driver_sql(
                query, execution_options={"no_parameters": True}
            ).one()
            found += [
                ViewColumn(view, name, type_, _use_of(view, name, ignored), rows, rows - count)
                for (name, type_), count in zip(types.items(), present, strict=True)
            ]
    return found


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _use_of(view: str, name: str, ignored: set[str]) -> str:
    if name in REQUIRED[view]:
        return "required"
    if f"{view}.{name}" in ignored:
        return "ignored"
    return "known" if name in OPTIONAL.get(view, {}) else "attribute"


def count_topics(stores: Stores) -> list[TopicCount]:
    """Return the topics of the first `TOPIC_ROWS` posts, most posts first, at most `MAX_TOPICS`.

    Empty if the posts have no topics.

    Raises
    ------
    SourceError
        Postgres took too long.
    """
    with limit_time(stores.engine, "counting topics", FIX) as connection:
        if TOPIC not in column_types(connection, POSTS):
            return []
        query = sa.text(f"""
            SELECT {TOPIC}::text AS topic, count(*) AS posts
            FROM (SELECT {TOPIC} FROM {SCHEMA}.{POSTS} LIMIT {TOPIC_ROWS}) AS sample
            GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {MAX_TOPICS}
        """)
        return [TopicCount(row.topic, row.posts) for row in connection.execute(query)]
