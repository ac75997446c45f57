"""What tests of explored places share: the hashes of draws, in plain Python."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from batch.feed_rules.explore import DrawKey

MASK = 2**64 - 1


def hash_pairs(key: DrawKey, user_id: int, post_ids: Iterable[int]) -> dict[int, int]:
    """Return the hash of a user with each post; of a pool, the post with the lowest is drawn."""
    ids = list(post_ids)
    (user,), posts = key.hash_ids("user", np.array([user_id])), key.hash_ids("post", np.array(ids, np.int64))
    return {post: _mix(int(user) ^ int(each)) for post, each in zip(ids, posts, strict=True)}


def _mix(value: int) -> int:
    """Mix the bits as splitmix64 does."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31
