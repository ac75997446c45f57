"""Labelled examples: what happened after a cutoff, for training and for the holdout.

A view whose next event by the same user on the same post is a like is a
positive example, any other view a negative one. A like that no view precedes
is a positive too; for those, unseen posts are sampled as negatives, as many as
keep the like rate that the views show.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt
import pandas as pd
import sqlalchemy as sa

from batch.history import History, places_of
from batch.likes import Likes
from batch.load import Network
from batch.stream import stream
from contract.columns import INTERACTIONS, LIKE_ACTION, SCHEMA, VIEW_ACTION

LOOK_BACK = timedelta(days=1)
"""A like this long after the cutoff still finds a view before it."""

LIKE_RATE_WITHOUT_VIEWS = 0.2
"""Assumed where a network logs no views: four sampled negatives a like."""

MOST_NEGATIVES_PER_LIKE = 20

HASH_STEPS = 2**20

COUNT = sa.text(f"""
    SELECT count(*) FROM {SCHEMA}.{INTERACTIONS} WHERE happened_at > :since AND happened_at <= :until
""")
LABELLED = f"""
    SELECT user_id, post_id, action = '{VIEW_ACTION}' AS viewed,
           action = '{LIKE_ACTION}' OR next IS NOT DISTINCT FROM '{LIKE_ACTION}' AS liked
    FROM (
        SELECT user_id, post_id, action, happened_at,
               lead(action) OVER steps AS next, lag(action) OVER steps AS previous
        FROM (
            SELECT DISTINCT user_id, post_id, action, happened_at FROM {SCHEMA}.{INTERACTIONS}
            WHERE happened_at > %(look_back)s AND happened_at <= %(until)s
              AND action IN ('{VIEW_ACTION}', '{LIKE_ACTION}') AND user_id IS NOT NULL AND post_id IS NOT NULL
              AND hashint8extended(user_id, %(seed)s) & {HASH_STEPS - 1} < %(steps)s
        ) seen
        WINDOW steps AS (PARTITION BY user_id, post_id ORDER BY happened_at, action = '{LIKE_ACTION}')
    ) labelled
    WHERE happened_at > %(since)s AND (action = '{VIEW_ACTION}' OR previous IS DISTINCT FROM '{VIEW_ACTION}')
    ORDER BY user_id, post_id, happened_at, action
"""

Places = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Examples:
    """One row per labelled view, like without a view, and sampled negative.

    Attributes
    ----------
    users, posts
        (rows,) places in the network's frames.
    liked
        (rows,) the label.
    viewed
        (rows,) whether the row is a view that the network logged.
    """

    users: Places
    posts: Places
    liked: Flags
    viewed: Flags

    def __len__(self) -> int:
        return self.users.size

    def where(self, keep: Flags) -> Examples:
        """Return the rows to keep."""
        return Examples(self.users[keep], self.posts[keep], self.liked[keep], self.viewed[keep])

    def distinct(self) -> Examples:
        """Return one row per (user, post), ascending, liked if any of its rows is."""
        frame = pd.DataFrame(
            {"user": self.users, "post": self.posts, "liked": self.liked, "viewed": self.viewed}
        )
        frame = frame.groupby(["user", "post"], as_index=False, sort=True).any()
        return Examples(*(frame[name].to_numpy() for name in ("user", "post", "liked", "viewed")))


def labelled_between(
    connection: sa.Connection, network: Network, before: History, until: datetime, most_rows: int, seed: int
) -> Examples:
    """Collect the examples of `before.cutoff` < happened_at <= until.

    Where there would be more than `most_rows`, whole users are left out, so
    that those who stay keep all their rows: first in Postgres, by a hash of
    their id, then once sampled negatives have been added.
    """
    since = before.cutoff
    expected = int(connection.scalar(COUNT, {"since": since, "until": until}) or 0)
    steps = HASH_STEPS if expected <= most_rows else int(HASH_STEPS * most_rows / expected)
    when = {"since": since, "until": until, "look_back": since - LOOK_BACK, "steps": steps, "seed": seed}
    rows = pd.concat(stream(connection, LABELLED, when), ignore_index=True)
    user, post = places_of(network.users, rows["user_id"]), places_of(network.posts, rows["post_id"])
    known = (user >= 0) & (post >= 0)
    labels = Examples(user, post, (rows["liked"] == "t").to_numpy(), (rows["viewed"] == "t").to_numpy())
    examples = with_negatives(labels.where(known), before.likes, len(network.posts), seed)
    return thinned(examples, most_rows, seed)


def thinned(examples: Examples, most_rows: int, seed: int) -> Examples:
    """Keep as many whole users, in random order, as have at most so many rows together."""
    if len(examples) <= most_rows:
        return examples
    rows_of_user = np.bincount(examples.users)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(rows_of_user))
    kept = np.zeros(rows_of_user.size, dtype=bool)
    kept[order[np.cumsum(rows_of_user[order]) <= most_rows]] = True
    return examples.where(kept[examples.users])


def with_negatives(examples: Examples, liked_before: Likes, posts: int, seed: int) -> Examples:
    """Add sampled negatives for the likes without a view, to the like rate of the views.

    A post that the user liked before, or that stands among their examples, is never drawn as one.
    """
    alone = examples.where(~examples.viewed)
    if len(alone) == 0:
        return examples
    seen = examples.where(examples.viewed)
    like_rate = float(seen.liked.mean()) if seen.liked.any() else LIKE_RATE_WITHOUT_VIEWS
    per_like = min((1 - like_rate) / like_rate, MOST_NEGATIVES_PER_LIKE)
    random = np.random.default_rng(seed)
    users = random.choice(alone.users, size=round(len(alone) * per_like))
    drawn = random.integers(0, posts, size=users.size)
    pairs = users * posts + drawn
    known = [
        examples.users * posts + examples.posts,
        liked_before.users.astype(np.int64) * posts + liked_before.posts,
    ]
    fresh = ~np.isin(pairs, np.concatenate(known))
    no = np.zeros(int(fresh.sum()), dtype=bool)
    return Examples(
        np.concatenate([examples.users, users[fresh]]),
        np.concatenate([examples.posts, drawn[fresh]]),
        np.concatenate([examples.liked, no]),
        np.concatenate([examples.viewed, no]),
    )
