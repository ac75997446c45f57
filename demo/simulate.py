"""Write a simulated network into Postgres: same numbers, same seed, same rows."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import numpy as np
import pandas as pd
import sqlalchemy as sa
from tqdm import tqdm

from demo import feed, network
from demo.ground_truth import Tastes, draw_tastes
from demo.population import (
    CITIES_PER_COUNTRY,
    COUNTRIES,
    FIRST_POST_ID,
    FIRST_USER_ID,
    OSES,
    SOURCES,
    TOPICS,
    Users,
    write_text,
)

logger = logging.getLogger(__name__)

MOST_ROWS_PER_USER = 1_000
"""On average; with more, the most active users would have to read day and night."""

POST_TABLE = """
CREATE TABLE post (
    id bigint PRIMARY KEY, text text, topic text, created_at timestamptz,
    view_count bigint, like_count bigint
)"""

SIMULATION_TABLE = """
CREATE TABLE simulation (seed bigint, users bigint, posts bigint, interactions bigint)"""

POSTS_VIEW = """
CREATE VIEW recs.posts AS
SELECT id AS post_id, topic, text, created_at, view_count, like_count
FROM post"""

COUNTERS = """
UPDATE post SET view_count = coalesce(views, 0), like_count = coalesce(likes, 0)
FROM post AS every LEFT JOIN (
    SELECT post_id,
        count(*) FILTER (WHERE action = 'view') AS views,
        count(*) FILTER (WHERE action = 'like') AS likes
    FROM feed_action GROUP BY post_id
) AS counted ON counted.post_id = every.id
WHERE post.id = every.id"""

# Shares of values that the table lacks although the user's tastes follow from them.
_MISSING = {"gender": 0.02, "age": 0.03, "city": 0.1, "os": 0.01, "source": 0.04}


def simulate(database_url: str, users: int, posts: int, interactions: int, seed: int) -> None:
    """Replace the network in the database by a simulated one.

    Memory stays within a few hundred MB whatever the number of interactions.

    Parameters
    ----------
    interactions
        Rows of feed_action in all, views and likes.

    Raises
    ------
    NetworkError
        If a number is out of range.
    """
    _check(users, posts, interactions, seed)
    tastes = draw_tastes(seed, users, posts)
    with network.transaction(database_url) as connection:
        network.create_tables(connection, POST_TABLE)
        connection.exec_driver_sql(SIMULATION_TABLE)
        numbers = {"seed": seed, "users": users, "posts": posts, "interactions": interactions}
        network.copy_frame(connection, "simulation", pd.DataFrame([numbers]))
        network.copy_frame(connection, '"user"', _user_rows(tastes.users, seed))
        network.copy_frame(connection, "post", _post_rows(tastes, seed))
        blocks = _with_progress(feed.draw_feed(tastes, interactions, seed), interactions)
        network.copy_binary(connection, network.FEED_ACTION, feed.COPY_COLUMNS, feed.to_copy(blocks))
        logger.info("counting each post's views and likes, making indexes")
        connection.execute(sa.text(COUNTERS))
        network.create_views(connection, POSTS_VIEW)
    logger.info(
        "simulated %s users, %s posts, %s interactions", f"{users:,}", f"{posts:,}", f"{interactions:,}"
    )


def _check(users: int, posts: int, interactions: int, seed: int) -> None:
    for name, number in (("users", users), ("posts", posts), ("interactions", interactions)):
        if number < 1:
            raise network.NetworkError(f"{name} must be at least 1, not {number}")
    if seed < 0:
        raise network.NetworkError(f"seed must be 0 or more, not {seed}")
    most = users * MOST_ROWS_PER_USER
    if interactions > most:
        raise network.NetworkError(
            f"{interactions:,} interactions are too many for {users:,} users: at most {most:,} "
            f"({MOST_ROWS_PER_USER:,} a user); ask for more users or fewer interactions"
        )


def _user_rows(users: Users, seed: int) -> pd.DataFrame:
    """Return the rows of the table "user"; some values are missing."""
    countries = np.array(list(COUNTRIES))
    cities = [f"{country} city {city + 1}" for country in countries for city in range(CITIES_PER_COUNTRY)]
    rows = pd.DataFrame(
        {
            "id": np.arange(len(users.age)) + FIRST_USER_ID,
            "gender": pd.array(users.gender, dtype="Int64"),
            "age": pd.array(users.age, dtype="Int64"),
            "country": countries[users.country],
            "city": np.array(cities)[users.city],
            "exp_group": users.exp_group,
            "os": np.array(list(OSES))[users.os],
            "source": np.array(list(SOURCES))[users.source],
        }
    )
    rng = np.random.default_rng([seed, 4])
    for column, share in _MISSING.items():
        rows[column] = rows[column].mask(rng.random(len(rows)) < share)
    return rows


def _post_rows(tastes: Tastes, seed: int) -> pd.DataFrame:
    """Return the rows of the table post, its counters still empty; some texts are missing."""
    rng = np.random.default_rng([seed, 5])
    posts = tastes.posts
    return pd.DataFrame(
        {
            "id": np.arange(len(posts.topic)) + FIRST_POST_ID,
            "text": [
                write_text(rng, topic, theme) for topic, theme in zip(posts.topic, posts.theme, strict=True)
            ],
            "topic": np.array(list(TOPICS))[posts.topic],
            "created_at": pd.to_datetime(posts.created, unit="s", utc=True),
        }
    )


def _with_progress(blocks: Iterator[feed.Views], interactions: int) -> Iterator[feed.Views]:
    """Pass the blocks on; show a bar on a terminal, log every tenth elsewhere."""
    on_terminal = sys.stderr.isatty()
    done = 0
    with tqdm(total=interactions, unit=" rows", unit_scale=True, disable=not on_terminal) as bar:
        for views in blocks:
            yield views
            rows = len(views.users) + int(views.liked.sum())
            bar.update(rows)
            tenths_before, done = done * 10 // interactions, done + rows
            if not on_terminal and done * 10 // interactions > tenths_before:
                logger.info("%s of %s rows written", f"{done:,}", f"{interactions:,}")
