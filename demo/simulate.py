"""Write a simulated network into Postgres; equal sizes, seed and shift of dates give equal rows."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa
from tqdm import tqdm

from contract.ids import Id, IdKind
from demo import feed, network
from demo.ground_truth import draw_ground_truth
from demo.ids import SimulatedIds, make_ids
from demo.population import (
    CITIES_PER_COUNTRY,
    COUNTRIES,
    OSES,
    SOURCES,
    TOPICS,
    Posts,
    Users,
    write_text,
)

logger = logging.getLogger(__name__)

MAX_ROWS_PER_USER = 1_000
"""Mean over users; with more, the feed's 90 days are too short for the most active users."""

POST_TABLE = """
CREATE TABLE post (
    id {id_type} PRIMARY KEY, text text, topic text, created_at timestamptz,
    view_count bigint, like_count bigint{author}
)"""

SIMULATION_TABLE = """
CREATE TABLE simulation (
    seed bigint, users bigint, posts bigint, interactions bigint, ids text, shift_days bigint,
    topic_taste double precision
)"""

POST_COLUMNS = {"post_id": "id"} | {
    name: name for name in ("topic", "text", "created_at", "view_count", "like_count")
}
"""Columns of the view of posts -> those of the table post."""

COUNTERS = """
UPDATE post SET view_count = coalesce(views, 0), like_count = coalesce(likes, 0)
FROM post AS all_posts LEFT JOIN (
    SELECT post_id,
        count(*) FILTER (WHERE action = 'view') AS views,
        count(*) FILTER (WHERE action = 'like') AS likes
    FROM feed_action GROUP BY post_id
) AS counted ON counted.post_id = all_posts.id
WHERE post.id = all_posts.id"""

# Shares of values that are null in the table although the like probability depends on them.
_NULL_SHARES = {"gender": 0.02, "age": 0.03, "city": 0.1, "os": 0.01, "source": 0.04}


def simulate(
    database_url: str,
    users: int,
    posts: int,
    interactions: int,
    seed: int,
    *,
    ids: IdKind = IdKind.NUMBER,
    shift_days: int = 0,
    topic_taste: float = 0.0,
) -> None:
    """Replace the network in the database by a simulated one.

    Memory does not grow with the number of interactions (a few hundred MB).

    Parameters
    ----------
    interactions
        Number of rows of feed_action: views and likes.
    ids
        Kind of the ids, as demo/ids.py describes. Posts have authors unless it is `number`.
    shift_days
        By how many days all times are later than without it; negative: earlier.
    topic_taste
        As in `draw_ground_truth`.

    Raises
    ------
    NetworkError
        If a number is out of range.
    """
    _check_sizes(users, posts, interactions, seed)
    truth = draw_ground_truth(seed, users, posts, topic_taste)
    names = make_ids(ids, users, posts, seed)
    with_authors = ids is not IdKind.NUMBER
    user_type, post_type = network.id_type(names.kinds.users), network.id_type(names.kinds.posts)
    author = f", author_id {user_type}" if with_authors else ""
    with network.transaction(database_url) as connection:
        network.create_tables(
            connection, POST_TABLE.format(id_type=post_type, author=author), kinds=names.kinds
        )
        connection.exec_driver_sql(SIMULATION_TABLE)
        parameters: dict[str, Any] = {
            "seed": seed,
            "users": users,
            "posts": posts,
            "interactions": interactions,
        }
        parameters |= {"ids": str(ids), "shift_days": shift_days, "topic_taste": topic_taste}
        network.copy_frame(connection, "simulation", pd.DataFrame([parameters]))
        network.copy_frame(connection, '"user"', _user_rows(truth.users, names, seed))
        post_rows = _post_rows(truth.posts, names, seed)
        post_rows["created_at"] += pd.Timedelta(days=shift_days)
        if with_authors:
            post_rows["author_id"] = _draw_authors(names, seed)
        network.copy_frame(connection, "post", post_rows)
        blocks = _show_progress(feed.draw_feed(truth, interactions, seed), interactions)
        feed.copy_feed(connection, (views.shift(shift_days) for views in blocks), names)
        logger.info("counting each post's views and likes, creating indexes")
        connection.execute(sa.text(COUNTERS))
        network.create_views(connection, POST_COLUMNS, kinds=names.kinds)
    logger.info(
        "simulated %s users, %s posts, %s interactions", f"{users:,}", f"{posts:,}", f"{interactions:,}"
    )


def _check_sizes(users: int, posts: int, interactions: int, seed: int) -> None:
    for name, number in (("users", users), ("posts", posts), ("interactions", interactions)):
        if number < 1:
            raise network.NetworkError(f"{name} must be at least 1, not {number}")
    if seed < 0:
        raise network.NetworkError(f"seed must be 0 or more, not {seed}")
    max_interactions = users * MAX_ROWS_PER_USER
    if interactions > max_interactions:
        raise network.NetworkError(
            f"{interactions:,} interactions are too many for {users:,} users: at most {max_interactions:,} "
            f"({MAX_ROWS_PER_USER:,} a user); give more users or fewer interactions"
        )


def _user_rows(users: Users, ids: SimulatedIds, seed: int) -> pd.DataFrame:
    """Return the rows of the table "user"; some values are null."""
    countries = np.array(list(COUNTRIES))
    cities = [f"{country} city {city + 1}" for country in countries for city in range(CITIES_PER_COUNTRY)]
    rows = pd.DataFrame(
        {
            "id": ids.users,
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
    for column, share in _NULL_SHARES.items():
        rows[column] = rows[column].mask(rng.random(len(rows)) < share)
    return rows


def _post_rows(posts: Posts, ids: SimulatedIds, seed: int) -> pd.DataFrame:
    """Return the rows of the table post without its counters; some texts are null."""
    rng = np.random.default_rng([seed, 5])
    return pd.DataFrame(
        {
            "id": ids.posts,
            "text": [
                write_text(rng, topic, theme) for topic, theme in zip(posts.topic, posts.theme, strict=True)
            ],
            "topic": np.array(list(TOPICS))[posts.topic],
            "created_at": pd.to_datetime(posts.created, unit="s", utc=True),
        }
    )


def _draw_authors(ids: SimulatedIds, seed: int) -> list[Id]:
    """Draw an author among the users for each post."""
    rows = np.random.default_rng([seed, 8]).integers(len(ids.users), size=len(ids.posts))
    return [ids.users[row] for row in rows]


def _show_progress(blocks: Iterator[feed.Views], interactions: int) -> Iterator[feed.Views]:
    """Yield the blocks; show a bar on a terminal, log every tenth of the rows otherwise."""
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
