"""Liked posts among the served: lists read back from Redis, held against likes read anew from Postgres."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import redis
import sqlalchemy as sa

from batch.learning.gather import Gathered
from batch.loading.source import snapshot
from batch.loading.stream import stream
from batch.publishing.store import blocks
from contract.codec import Ranked, decode_list
from contract.columns import INTERACTIONS, LIKE_ACTION, POST_ID, SCHEMA, USER_ID
from contract.keys import Keys

MOST_LISTS = 20_000
"""About so many users with likes are joined back, drawn by a hash of their id; all where there are fewer."""

KEYS_AT_A_TIME = 1_000
HASH_STEPS = 2**20

LATE = timedelta(hours=1)
"""A like that is entered so long after it happened may have come in while the night ran."""

LIKED = f"""
    SELECT DISTINCT user_id, post_id FROM {SCHEMA}.{INTERACTIONS}
    WHERE action = '{LIKE_ACTION}' AND happened_at <= %(until)s AND post_id IS NOT NULL
      AND user_id <= %(last_user)s AND hashint8extended(user_id, %(seed)s) & {HASH_STEPS - 1} < %(steps)s
    ORDER BY 1, 2
"""


def liked_served(
    engine: sa.Engine,
    client: redis.Redis,
    keys: Keys,
    run_id: str,
    gathered: Gathered,
    users: int,
    clock: datetime,
    seed: int,
) -> tuple[int, int]:
    """Return how many posts in the lists are liked by their user, and how many lists were read.

    Parameters
    ----------
    gathered
        Tells how many users have likes, and so which share of them to draw; nothing else is taken from it.
    users
        How many of the network's users have a list.
    clock
        When the night read the likes; those of the hour before may be unknown to it.
    """
    liking = np.count_nonzero(np.diff(gathered.liked.starts[: users + 1]))
    asked = {
        "until": clock - LATE,
        "last_user": int(gathered.network.users.index[users - 1]),
        "seed": seed,
        "steps": min(HASH_STEPS, HASH_STEPS * MOST_LISTS // max(int(liking), 1)),
    }
    with snapshot(engine) as connection:
        likes = pd.concat(stream(connection, LIKED, asked), ignore_index=True)
    posts_of: dict[int, set[int]] = {}
    for user_id, post_id in zip(likes[USER_ID].tolist(), likes[POST_ID].tolist(), strict=True):
        posts_of.setdefault(user_id, set()).add(post_id)
    found = read = 0
    for user_id, ranked in lists_of(client, keys, run_id, posts_of):
        read += 1
        found += sum(post in posts_of[user_id] for post, _ in ranked)
    return found, read


def lists_of(
    client: redis.Redis, keys: Keys, run_id: str, user_ids: Iterable[int]
) -> Iterable[tuple[int, Ranked]]:
    """Yield the list of each user that has one in a run, read from Redis."""
    for block in blocks(user_ids, KEYS_AT_A_TIME):
        with client.pipeline(transaction=False) as pipe:
            for user_id in block:
                pipe.get(keys.user(run_id, user_id))
            for user_id, value in zip(block, pipe.execute(), strict=True):
                if value is not None:
                    yield user_id, decode_list(value)
