"""What is known of users and posts as of a cutoff: counts, made by Postgres, and likes.

Every query here ends at the cutoff; that is what keeps the future out of the
features. There is one exception, which takes the future *out* of a number: a
network's own counter stands at what it is now, so the likes and views logged
since the cutoff are subtracted from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt
import pandas as pd
import sqlalchemy as sa

from batch.arrays import Float32s
from batch.loading.groupings import Groupings
from batch.loading.likes import Likes
from batch.loading.load import Network
from batch.loading.pairs import Shown, pairs_until
from batch.loading.places import places_of
from batch.loading.stream import stream
from contract import columns
from contract.columns import INTERACTIONS, LIKE_ACTION, SCHEMA, USERS, VIEW_ACTION

RECENT = timedelta(days=7)

KNOWN = f"action IN ('{VIEW_ACTION}', '{LIKE_ACTION}')"
BY_USER_AND_CELL = f"""
    SELECT i.user_id, p.cell, p.post_id IS NULL AS unknown_post,
           count(*) FILTER (WHERE i.action = '{VIEW_ACTION}') AS views,
           count(*) FILTER (WHERE i.action = '{LIKE_ACTION}') AS likes,
           count(*) FILTER (WHERE i.{KNOWN} AND i.happened_at > %(recent)s) AS recent,
           extract(epoch FROM %(cutoff)s - max(i.happened_at) FILTER (WHERE i.{KNOWN})) / 86400 AS days_since,
           count(*) FILTER (WHERE i.{KNOWN} IS NOT TRUE) AS unknown_action
    FROM {SCHEMA}.{INTERACTIONS} i
    LEFT JOIN unnest(%(posts)s::bigint[], %(cells)s::int[]) AS p (post_id, cell) ON p.post_id = i.post_id
    WHERE i.happened_at <= %(cutoff)s
    GROUP BY 1, 2, 3 ORDER BY 1, 3, 2
"""
BY_POST = f"""
    SELECT post_id,
           count(*) FILTER (WHERE action = '{VIEW_ACTION}' AND happened_at <= %(cutoff)s) AS views,
           count(*) FILTER (WHERE action = '{LIKE_ACTION}' AND happened_at <= %(cutoff)s) AS likes,
           count(*) FILTER (WHERE action = '{LIKE_ACTION}' AND happened_at <= %(cutoff)s
                            AND happened_at > %(recent)s) AS recent_likes,
           count(*) FILTER (WHERE action = '{VIEW_ACTION}' AND happened_at > %(cutoff)s) AS later_views,
           count(*) FILTER (WHERE action = '{LIKE_ACTION}' AND happened_at > %(cutoff)s) AS later_likes
    FROM {SCHEMA}.{INTERACTIONS}
    WHERE post_id IS NOT NULL AND user_id IN (SELECT user_id FROM {SCHEMA}.{USERS})
    GROUP BY 1 ORDER BY 1
"""
LIKED = f"""
    SELECT DISTINCT user_id, post_id FROM {SCHEMA}.{INTERACTIONS}
    WHERE action = '{LIKE_ACTION}' AND happened_at <= %(cutoff)s
      AND user_id IS NOT NULL AND post_id IS NOT NULL
"""


@dataclass(frozen=True, eq=False)
class History:
    """What was known at `cutoff`; users and posts in the order of the network's frames.

    One is equal to itself alone, so that what was made of it can be found again by it.

    Attributes
    ----------
    user_counts
        Row per user: `views`, `likes`, `recent` (actions in the last seven
        days) and `days_since` the last action (NaN for a user without any).
    post_counts
        Row per post: `views`, `likes` and `recent_likes`; likes and views are
        the network's own counters where it has them.
    groupings
        The groups of posts that views and likes are counted by.
    views_of_group, likes_of_group
        For each grouping: (users, groups) float32 counts.
    likes
        Every like up to the cutoff.
    shown
        What users were shown and liked up to the cutoff, pair by pair; of very many pairs a share.
    left_out
        Interactions not used, by reason.
    """

    cutoff: datetime
    user_counts: pd.DataFrame
    post_counts: pd.DataFrame
    groupings: Groupings
    views_of_group: dict[str, Float32s]
    likes_of_group: dict[str, Float32s]
    likes: Likes
    shown: Shown
    left_out: dict[str, int]


def as_of(connection: sa.Connection, network: Network, cutoff: datetime, groupings: Groupings) -> History:
    """Collect what was known at the cutoff, aggregated in Postgres."""
    when = {"cutoff": cutoff, "recent": cutoff - RECENT}
    # A cell is a combination of groups that occurs: one pass over the interactions counts for all groupings.
    cells, cell = np.unique(groupings.groups, axis=0, return_inverse=True)
    parameters = when | {"posts": network.posts.index.tolist(), "cells": cell.tolist()}
    counted = pd.concat(stream(connection, BY_USER_AND_CELL, parameters), ignore_index=True)
    grouped, left_out = _known(counted, network)
    by_group: dict[str, dict[str, Float32s]] = {"views": {}, "likes": {}}
    for place, (name, size) in enumerate(zip(groupings.names, groupings.sizes, strict=True)):
        at = (grouped["user"], cells[grouped["cell"].astype(np.int64), place])
        for counts, tables in by_group.items():
            tables[name] = np.zeros((len(network.users), size), dtype=np.float32)
            np.add.at(tables[name], at, grouped[counts].to_numpy(np.float32))
    likes, shown = pairs_until(
        connection, network, cutoff, float(grouped[["views", "likes"]].to_numpy().sum())
    )
    return History(
        cutoff=cutoff,
        user_counts=_user_counts(grouped, len(network.users)),
        post_counts=_post_counts(connection, network.posts, when),
        groupings=groupings,
        views_of_group=by_group["views"],
        likes_of_group=by_group["likes"],
        likes=likes,
        shown=shown,
        left_out=left_out,
    )


def _known(grouped: pd.DataFrame, network: Network) -> tuple[pd.DataFrame, dict[str, int]]:
    """Keep the rows of known users and posts, with the user's place; count the interactions of the rest."""
    grouped["user"] = places_of(network.users, grouped["user_id"])
    unknown_user = grouped["user"] < 0
    unknown_post = ~unknown_user & (grouped["unknown_post"] == "t")
    actions = grouped[["views", "likes", "unknown_action"]].sum(axis=1)
    left_out = {
        "of_unknown_users": int(actions[unknown_user].sum()),
        "of_unknown_posts": int(actions[unknown_post].sum()),
        "with_unknown_actions": int(grouped.loc[~unknown_user & ~unknown_post, "unknown_action"].sum()),
    }
    return grouped[~unknown_user & ~unknown_post], left_out


def _user_counts(grouped: pd.DataFrame, users: int) -> pd.DataFrame:
    by_user = grouped.groupby("user")
    counts = by_user[["views", "likes", "recent"]].sum()
    counts["days_since"] = by_user["days_since"].min()
    counts = counts.reindex(range(users))
    return counts.fillna({"views": 0, "likes": 0, "recent": 0}).astype(np.float64)


def _post_counts(connection: sa.Connection, posts: pd.DataFrame, when: dict[str, datetime]) -> pd.DataFrame:
    logged = pd.concat(stream(connection, BY_POST, when), ignore_index=True).set_index("post_id")
    counts = logged.reindex(posts.index).fillna(0).astype(np.float64)
    for name, counter in (("likes", columns.LIKE_COUNT), ("views", columns.VIEW_COUNT)):
        then = (posts[counter] - counts[f"later_{name}"]).clip(lower=0)
        counts[name] = then.where(posts[counter].notna(), counts[name])
    return counts[["views", "likes", "recent_likes"]]


def likes_until(connection: sa.Connection, network: Network, cutoff: datetime) -> Likes:
    """Return every like up to the cutoff, of known users and posts."""
    users: list[npt.NDArray[np.int32]] = []
    posts: list[npt.NDArray[np.int32]] = []
    for block in stream(connection, LIKED, {"cutoff": cutoff}):
        user = places_of(network.users, block["user_id"])
        post = places_of(network.posts, block["post_id"])
        known = (user >= 0) & (post >= 0)
        users.append(user[known].astype(np.int32))
        posts.append(post[known].astype(np.int32))
    return Likes.from_pairs(np.concatenate(users), np.concatenate(posts), len(network.users))
