"""Check that no list in Redis contains a post that its user has liked in the night's interactions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from batch.context import Stores
from batch.redis_client import blocks
from batch.training.dataset import Dataset
from contract.codec import Ranked, decode_list
from contract.columns import POST_ID, USER_ID

MAX_LISTS = 20_000
"""Lists of users with likes that are read back; above it, a random sample."""

KEYS_BATCH = 1_000
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


@dataclass(frozen=True)
class LikedCheck:
    """Posts in lists that their user has liked, and the number of lists read."""

    liked_in_lists: int
    lists_read: int


def check_liked(stores: Stores, run_id: str, dataset: Dataset, users: int) -> LikedCheck:
    """Count the posts in lists that their user has liked.

    The likes are those of the night's snapshot: a later like is removed by the refresh at the end of
    the night. They are read from the store again, not taken from what the lists were made of.

    Parameters
    ----------
    users
        Number of the network's users, from the first, that have a list.
    """
    store, until = dataset.now.store, dataset.now.cutoff
    rows = store.arrays(USERS_WITH_LIKES, {"until": until, "users": users})["user_row"]
    if rows.size > MAX_LISTS:
        rng = np.random.default_rng(stores.settings.night.seed)
        rows = np.sort(rng.choice(rows, MAX_LISTS, replace=False))
    likes = store.arrays(LIKED, {"until": until, "users": rows.tolist()})
    liked_by: dict[int, set[int]] = {}
    for user_id, post_id in zip(likes[USER_ID].tolist(), likes[POST_ID].tolist(), strict=True):
        liked_by.setdefault(user_id, set()).add(post_id)
    found = read = 0
    for user_id, ranked in read_lists(stores, run_id, liked_by):
        read += 1
        found += sum(post in liked_by[user_id] for post, _ in ranked)
    return LikedCheck(found, read)


def read_lists(stores: Stores, run_id: str, user_ids: Iterable[int]) -> Iterator[tuple[int, Ranked]]:
    """Yield (user id, list) of each user that has a list in a run, read from Redis."""
    for block in blocks(user_ids, KEYS_BATCH):
        with stores.redis.pipeline(transaction=False) as pipe:
            for user_id in block:
                pipe.get(stores.keys.user(run_id, user_id))
            for user_id, value in zip(block, pipe.execute(), strict=True):
                if value is not None:
                    yield user_id, decode_list(value)
