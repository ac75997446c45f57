"""Posts for operators: the newest ones, those with some words, and one with its actions by day.

Every query is bounded, by a LIMIT and by a time. Imports neither numpy nor pandas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from batch.context import Stores
from batch.loading.schema import cast_id, column_types, kind_of_ids
from batch.postgres import limit_time
from contract.columns import (
    ACTION,
    AUTHOR_ID,
    CREATED_AT,
    HAPPENED_AT,
    INTERACTIONS,
    LIKE_ACTION,
    LIKE_COUNT,
    POST_ID,
    POSTS,
    SCHEMA,
    TEXT,
    TOPIC,
    VIEW_ACTION,
    VIEW_COUNT,
)
from contract.errors import SourceError
from contract.ids import Id

MAX_WORDS = 8
MAX_TEXT, MAX_WHOLE_TEXT = 300, 20_000
"""Characters of a post's text in a list, and on a page of its own."""

MAX_DAYS = 90
MAX_COST = 30_000.0
"""Cost that Postgres may expect of a query on interactions; reading 3 million rows costs 42,000 (0.13 s)."""

TIME_BOUNDS = "'0001-01-02' AND '9999-12-30'"
"""Times that Python has: not -infinity, infinity and null."""


@dataclass(frozen=True)
class Post:
    """A row of `recs.posts`; columns that the view does not have are None.

    `position` is the value that lists are ordered by, as text; None if they are ordered by the id alone.
    """

    post_id: Id
    text: str | None
    topic: str | None
    created_at: datetime | None
    author_id: str | None
    likes: int | None
    views: int | None
    position: str | None


@dataclass(frozen=True)
class PostFilter:
    """Which posts are listed: all words must be in the text, in any case; empty values choose all."""

    words: str = ""
    topic: str = ""


@dataclass(frozen=True)
class DayCounts:
    """Views and likes of a day in UTC."""

    day: date
    views: int
    likes: int


def list_posts(
    stores: Stores, chosen: PostFilter, count: int, after: tuple[str, str | None] | None = None
) -> list[Post]:
    """Return the newest posts of a filter; by id, highest first, if the view has no `created_at`.

    Parameters
    ----------
    after
        (id as text, position) of a post: only posts that come after it.

    Raises
    ------
    SourceError
        It took too long.
    """
    fix = "ask for rarer words or another topic, or index the table"
    with limit_time(stores.engine, "the search for posts", fix) as connection:
        types = _read_types(connection)
        conditions, arguments = _conditions(chosen, types)
        arguments["count"] = count
        dated = CREATED_AT in types
        found: list[Post] = []
        if dated and (after is None or after[1] is not None):
            # Apart from the posts without a time, so that an index on it serves the order.
            where, order = [*conditions, f"{CREATED_AT} IS NOT NULL"], f"{CREATED_AT} DESC, {POST_ID} DESC"
            if after is not None:
                where.append(
                    f"{CREATED_AT} <= :after_time AND ({CREATED_AT}, {POST_ID}) < (:after_time, :after_id)"
                )
            times = {} if after is None else {"after_id": after[0], "after_time": after[1]}
            found = _select(connection, types, where, order, arguments | times)
            after = None
        if len(found) < count:
            where = [*conditions, f"{CREATED_AT} IS NULL"] if dated else list(conditions)
            ids = {} if after is None else {"after_id": after[0]}
            where += [] if after is None else [f"{POST_ID} < :after_id"]
            arguments |= {"count": count - len(found)} | ids
            found += _select(connection, types, where, f"{POST_ID} DESC", arguments)
    return found


def read_posts(stores: Stores, post_ids: Sequence[Id], max_text: int = MAX_TEXT) -> dict[str, Post]:
    """Return those of the posts that are in `recs.posts`, by id as text."""
    if not post_ids:
        return {}
    with limit_time(stores.engine, "reading posts", f"index {POST_ID} of the table") as connection:
        types = _read_types(connection)
        names = [f":id{index}" for index in range(len(post_ids))]
        arguments = {f"id{index}": str(post_id) for index, post_id in enumerate(post_ids)}
        where = [f"{POST_ID} IN ({', '.join(names)})"]
        found = _select(
            connection, types, where, POST_ID, arguments | {"count": len(post_ids)}, max_text=max_text
        )
    return {str(post.post_id): post for post in found}


def count_by_day(stores: Stores, post_id: Id) -> list[DayCounts]:
    """Return views and likes of a post on each of its last `MAX_DAYS` days, oldest first; empty without any.

    Raises
    ------
    SourceError
        Postgres would read too many rows: the interactions have no index on the post.
    """
    fix = f"an index on ({POST_ID}, {HAPPENED_AT}) of the interactions' table makes it quick"
    query = f"""
        SELECT ({HAPPENED_AT}::timestamptz AT TIME ZONE 'UTC')::date AS day,
            count(*) FILTER (WHERE {ACTION} = '{VIEW_ACTION}') AS views,
            count(*) FILTER (WHERE {ACTION} = '{LIKE_ACTION}') AS likes
        FROM {SCHEMA}.{INTERACTIONS}
        WHERE {POST_ID} = :post_id AND {HAPPENED_AT} BETWEEN {TIME_BOUNDS}
            AND {ACTION} IN ('{VIEW_ACTION}', '{LIKE_ACTION}')
        GROUP BY 1 ORDER BY 1 DESC LIMIT {MAX_DAYS}
    """
    arguments = {"post_id": str(post_id)}
    with limit_time(stores.engine, "counting views and likes by day", fix) as connection:
        plan: Any = connection.scalar(sa.text(f"EXPLAIN (FORMAT JSON) {query}"), arguments)
        if plan[0]["Plan"]["Total Cost"] > MAX_COST:
            raise SourceError(
                f"views and likes by day are not counted: Postgres would read all interactions; {fix}"
            )
        rows = connection.execute(sa.text(query), arguments).all()
    found = {row.day: DayCounts(row.day, row.views, row.likes) for row in rows}
    if not found:
        return []
    last = max(found)
    days = [last - timedelta(days=ago) for ago in range(MAX_DAYS) if last - timedelta(days=ago) >= min(found)]
    return [found.get(day, DayCounts(day, 0, 0)) for day in reversed(days)]


def _read_types(connection: sa.Connection) -> dict[str, str]:
    types = column_types(connection, POSTS)
    if POST_ID not in types:
        raise SourceError(
            f"{SCHEMA}.{POSTS} is missing or has no {POST_ID}; `python -m batch doctor` says more"
        )
    return types


def _conditions(chosen: PostFilter, types: dict[str, str]) -> tuple[list[str], dict[str, Any]]:
    """Return the conditions of a filter, and their arguments."""
    conditions, arguments = [], {}
    for index, word in enumerate(chosen.words.split()[:MAX_WORDS]):
        escaped = word.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
        conditions.append(f"{TEXT} ILIKE :word{index}" if TEXT in types else "false")
        arguments[f"word{index}"] = f"%{escaped}%"
    if chosen.topic:
        conditions.append(f"{TOPIC} = :topic" if TOPIC in types else "false")
        arguments["topic"] = chosen.topic
    return conditions, arguments


def _select(
    connection: sa.Connection,
    types: dict[str, str],
    where: Sequence[str],
    order: str,
    arguments: dict[str, Any],
    *,
    max_text: int = MAX_TEXT,
) -> list[Post]:
    """Read posts. Ids are compared as untyped literals, which Postgres takes as ids of any kind."""

    def expression(name: str, sql: str) -> str:
        return f"{sql if name in types else 'NULL'} AS {name}"

    created = f"CASE WHEN {CREATED_AT} BETWEEN {TIME_BOUNDS} THEN {CREATED_AT}::timestamptz END"
    columns = [
        f"{cast_id(POST_ID, kind_of_ids(types[POST_ID]))} AS {POST_ID}",
        expression(AUTHOR_ID, f"{AUTHOR_ID}::text"),
        expression(TEXT, f"left({TEXT}, {max_text})"), expression(TOPIC, f"left({TOPIC}, {MAX_TEXT})"),
        expression(CREATED_AT, created), expression(LIKE_COUNT, LIKE_COUNT),
        expression(VIEW_COUNT, VIEW_COUNT),
        f"{f'{CREATED_AT}::text' if CREATED_AT in types else 'NULL'} AS position",
    ]  # fmt: skip
    query = f"SELECT {', '.join(columns)} FROM {SCHEMA}.{POSTS}"
    if where:
        query += f" WHERE {' AND '.join(where)}"
    rows = connection.execute(sa.text(f"{query} ORDER BY {order} LIMIT :count"), arguments)
    return [
        Post(
            post_id=row.post_id,
            text=row.text,
            topic=row.topic,
            created_at=row.created_at and row.created_at.astimezone(UTC),
            author_id=row.author_id,
            likes=row.like_count,
            views=row.view_count,
            position=row.position,
        )
        for row in rows
    ]
