"""Who was shown what and who likes what, per pair of user and post, as of a cutoff."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import sqlalchemy as sa

from batch.arrays import Float32s, Int32s
from batch.loading.likes import Likes
from batch.loading.load import Network
from batch.loading.places import places_of
from batch.loading.stream import stream
from contract.columns import INTERACTIONS, LIKE_ACTION, SCHEMA, VIEW_ACTION

MOST_PAIRS = 5_000_000
"""Kept; beyond that a share of them, drawn by a hash of the pair, so that every user keeps some."""

HASH_STEPS = 2**20

PAIRS = f"""
    SELECT user_id, post_id, views, likes, sampled
    FROM (
        SELECT user_id, post_id, count(*) FILTER (WHERE action = '{VIEW_ACTION}') AS views,
               count(*) FILTER (WHERE action = '{LIKE_ACTION}') AS likes,
               hashint8extended(user_id, hashint8extended(post_id, 0)) & {HASH_STEPS - 1} < %(steps)s
                   AS sampled
        FROM {SCHEMA}.{INTERACTIONS}
        WHERE happened_at <= %(cutoff)s AND action IN ('{VIEW_ACTION}', '{LIKE_ACTION}')
          AND user_id IS NOT NULL AND post_id IS NOT NULL
        GROUP BY user_id, post_id
    ) pairs
    WHERE likes > 0 OR sampled
"""


@dataclass(frozen=True)
class Shown:
    """Pairs of a user and a post that the user was shown or likes.

    Attributes
    ----------
    users, posts
        (pairs,) int32 places in the network's frames; pairs ascend.
    views, likes
        (pairs,) float32: how often the network logged each; no view for a like alone.
    """

    users: Int32s
    posts: Int32s
    views: Float32s
    likes: Float32s


def pairs_until(
    connection: sa.Connection, network: Network, cutoff: datetime, most: float
) -> tuple[Likes, Shown]:
    """Return every like up to the cutoff, and what was shown, of known users and posts.

    Parameters
    ----------
    most
        How many pairs there are at most.
    """
    share = min(MOST_PAIRS / max(most, 1.0), 1.0)
    parameters = {"cutoff": cutoff, "steps": int(HASH_STEPS * share)}
    blocks: list[list[Any]] = []
    for block in stream(connection, PAIRS, parameters):
        user, post = places_of(network.users, block["user_id"]), places_of(network.posts, block["post_id"])
        places = (user.astype(np.int32), post.astype(np.int32))
        counts = (block[name].to_numpy(np.float32) for name in ("views", "likes"))
        known = (user >= 0) & (post >= 0)
        blocks.append([column[known] for column in (*places, *counts, (block["sampled"] == "t").to_numpy())])
    users, posts, views, likes, sampled = (np.concatenate(column) for column in zip(*blocks, strict=True))
    kept = np.flatnonzero(sampled)
    kept = kept[np.lexsort((posts[kept], users[kept]))]
    return (
        Likes.from_pairs(users[likes > 0], posts[likes > 0], len(network.users)),
        Shown(users[kept], posts[kept], views[kept], likes[kept]),
    )
