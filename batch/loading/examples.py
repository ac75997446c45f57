"""Labelled examples: what happened after a cutoff, for training and for the holdout.

A view whose next event by the same user on the same post is a like is a
positive example, any other view a negative one. A like that no view precedes
is a positive too; for those, posts not liked are sampled as negatives: a post
as often as the network shows it, and together of the weight that keeps the
like rate of the views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt
import pandas as pd
import sqlalchemy as sa

from batch.arrays import Float32s
from batch.loading.history import History
from batch.loading.load import Network
from batch.loading.places import places_of
from batch.loading.stream import stream
from contract.columns import INTERACTIONS, LIKE_ACTION, SCHEMA, VIEW_ACTION

LOOK_BACK = timedelta(days=1)
"""A like this long after the cutoff still finds a view before it."""

LIKE_RATE_WITHOUT_VIEWS = 0.2
"""Assumed where a network logs no views: four sampled negatives a like."""

MOST_NEGATIVES_PER_LIKE = 20

MOSTLY = 0.9
"""Of so many posts the views must not fall short of the likes, or they do not tell how often one is shown."""

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
    weights
        (rows,) float32: 1, or how many views a sampled negative stands for.
    """

    users: Places
    posts: Places
    liked: Flags
    viewed: Flags
    weights: Float32s

    def __len__(self) -> int:
        return self.users.size

    @classmethod
    def together(cls, parts: Sequence[Examples]) -> Examples:
        """Put rows one part after another."""
        return cls(
            np.concatenate([part.users for part in parts]),
            np.concatenate([part.posts for part in parts]),
            np.concatenate([part.liked for part in parts]),
            np.concatenate([part.viewed for part in parts]),
            np.concatenate([part.weights for part in parts]),
        )

    def where(self, keep: Flags) -> Examples:
        """Return the rows to keep."""
        return Examples(
            self.users[keep], self.posts[keep], self.liked[keep], self.viewed[keep], self.weights[keep]
        )

    def distinct(self) -> Examples:
        """Return one row per (user, post), ascending, liked if any of its rows is."""
        frame = pd.DataFrame(
            {
                "user": self.users,
                "post": self.posts,
                "liked": self.liked,
                "viewed": self.viewed,
                "weight": self.weights,
            }
        )
        frame = frame.groupby(["user", "post"], as_index=False, sort=True).max()
        return Examples(*(frame[name].to_numpy() for name in frame.columns))


def labelled_between(
    connection: sa.Connection,
    network: Network,
    before: History,
    until: datetime,
    most_rows: int,
    seed: int,
    negatives_per_like: float = MOST_NEGATIVES_PER_LIKE,
) -> Examples:
    """Collect the examples of `before.cutoff` < happened_at <= until.

    At most `negatives_per_like` are sampled; fewer than the like rate asks for weigh the more.
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
    liked, viewed = ((rows[name] == "t").to_numpy() for name in ("liked", "viewed"))
    labels = Examples(user, post, liked, viewed, np.ones(user.size, np.float32)).where(known)
    examples = with_negatives(labels, before, negatives_per_like, seed)
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


def with_negatives(examples: Examples, before: History, most_per_like: float, seed: int) -> Examples:
    """Add sampled negatives for the likes without a view, to the like rate of the views.

    Likes alone tell how often a post is shown and liked; negatives drawn as
    often as posts are shown leave how much it is liked. A post that the user
    liked before, or that stands among their examples, is never drawn.
    """
    alone = examples.where(~examples.viewed)
    if len(alone) == 0:
        return examples
    seen = examples.where(examples.viewed)
    like_rate = float(seen.liked.mean()) if seen.liked.any() else LIKE_RATE_WITHOUT_VIEWS
    per_like = min((1 - like_rate) / like_rate, MOST_NEGATIVES_PER_LIKE)
    drawn_per_like = min(per_like, most_per_like)
    random = np.random.default_rng(seed)
    users = random.choice(alone.users, size=round(len(alone) * drawn_per_like))
    posts = len(before.post_counts)
    drawn = random.choice(posts, size=users.size, p=_shown(before))
    known = [
        examples.users * posts + examples.posts,
        before.likes.users.astype(np.int64) * posts + before.likes.posts,
    ]
    fresh = ~np.isin(users * posts + drawn, np.concatenate(known))
    count = int(fresh.sum())
    no, weight = np.zeros(count, dtype=bool), np.full(count, per_like / drawn_per_like, np.float32)
    return Examples.together([examples, Examples(users[fresh], drawn[fresh], no, no, weight)])


def _shown(before: History) -> npt.NDArray[np.float64]:
    """Return how often the network shows each post, as shares; equal ones where no view is known."""
    views = before.post_counts["views"].to_numpy(np.float64)
    told = (views >= before.post_counts["likes"]).mean() > MOSTLY
    shown = views + 1 if told else np.ones(views.size)
    shares: npt.NDArray[np.float64] = shown / shown.sum()
    return shares
