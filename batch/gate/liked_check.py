"""Check that no list in Redis contains a post its user has liked, by the likes of the night's store."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import redis

from batch.redis_client import blocks
from batch.training.dataset import Dataset
from contract.codec import Ranked, decode_list
from contract.columns import POST_ID, USER_ID
from contract.keys import Keys

MOST_LISTS = 20_000
"""So many users with likes are joined back, drawn at random; all where there are fewer."""

KEYS_AT_A_TIME = 1_000
USERS_WITH_LIKES = """
    SELECT DISTINCT user_row FROM interactions
    WHERE action = 'like' AND happened_at <= $until AND user_row < $users ORDER BY 1
"""
LIKED = """
    SELECT DISTINCT u.user_id, p.post_id FROM interactions i
    JOIN users u ON u.user_row = i.user_row JOIN posts p ON p.post_row = i.post_row
    WHERE i.action = 'like' AND i.happened_at <= $until AND i.user_row IN (SELECT unnest($users))
    ORDER BY 1, 2
"""


def liked_served(
    client: redis.Redis, keys: Keys, run_id: str, dataset: Dataset, users: int, seed: int
) -> tuple[int, int]:
    """Return how many posts in the lists are liked by their user, and how many lists were read.

    The likes are those of the night's own snapshot: what was liked since is
    not the run's fault, and the refresh at the end of the night takes it out.
    They are read from the store anew, not taken from what the lists were made of.

    Parameters
    ----------
    users
        How many of the network's users have a list.
    """
    store, until = dataset.now.store, dataset.now.cutoff
    liking = store.arrays(USERS_WITH_LIKES, {"until": until, "users": users})["user_row"]
    if liking.size > MOST_LISTS:
        liking = np.sort(np.random.default_rng(seed).choice(liking, MOST_LISTS, replace=False))
    likes = store.arrays(LIKED, {"until": until, "users": liking.tolist()})
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
