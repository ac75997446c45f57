"""Labelled examples: what happened after a cutoff, for training and for the holdout.

There are two kinds, see batch/training/recipe.py. `labelled_between` collects
the logged views:

A view whose next event by the same user on the same post is a like is a
positive example, any other view a negative one. A like that no view precedes
is a positive too; for those, posts not liked are sampled as negatives: a post
as often as the network shows it, and together of the weight that keeps the
like rate of the views. `likes_among_all_posts` collects the likes, and posts
drawn evenly over all that existed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from batch.arrays import Bools, Float32s, Float64s, Int64s
from batch.loading.history import History
from batch.loading.interaction_store import InteractionStore
from batch.loading.likes import Likes

LOOK_BACK = timedelta(days=1)
"""A like this long after the cutoff still finds a view before it."""

LIKE_RATE_WITHOUT_VIEWS = 0.2
"""Assumed where a network logs no views: four sampled negatives a like."""

MOST_NEGATIVES_PER_LIKE = 20

MOSTLY = 0.9
"""Of so many posts the views must not fall short of the likes, or they do not tell how often one is shown."""

COUNT = "SELECT count(*) FROM interactions WHERE happened_at > $since AND happened_at <= $until"
LABELLED = """
    SELECT user_row, post_row, action = 'view' AS viewed,
           action = 'like' OR coalesce(next = 'like', false) AS liked
    FROM (
        SELECT user_row, post_row, action, happened_at,
               lead(action) OVER steps AS next, lag(action) OVER steps AS previous
        FROM (
            SELECT DISTINCT user_row, post_row, action, happened_at FROM interactions
            WHERE happened_at > $look_back AND happened_at <= $until {sampled}
        ) seen
        WINDOW steps AS (PARTITION BY user_row, post_row ORDER BY happened_at, action = 'like')
    ) labelled
    WHERE happened_at > $since AND (action = 'view' OR coalesce(previous <> 'view', true))
    ORDER BY user_row, post_row, happened_at
"""
SAMPLED = "AND user_row IN (SELECT unnest($users))"


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

    users: Int64s
    posts: Int64s
    liked: Bools
    viewed: Bools
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

    def where(self, keep: Bools | Int64s) -> Examples:
        """Return the rows to keep, or rows in an order given."""
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
    store: InteractionStore,
    before: History,
    until: datetime,
    most_rows: int,
    seed: int,
    negatives_per_like: float = MOST_NEGATIVES_PER_LIKE,
) -> Examples:
    """Collect the examples of `before.cutoff` < happened_at <= until.

    At most `negatives_per_like` are sampled; fewer than the like rate asks for weigh the more.
    Where there would be more than `most_rows`, whole users are left out, so
    that those who stay keep all their rows: first users drawn at random, then
    as many as sampled negatives make too many.
    """
    since = before.cutoff
    when: dict[str, Any] = {"since": since, "until": until}
    share = most_rows / max(store.scalar(COUNT, when), 1)
    when |= {"look_back": since - LOOK_BACK}
    if share < 1:
        drawn = np.random.default_rng(seed).random(len(before.user_counts)) < share
        when |= {"users": np.flatnonzero(drawn).tolist()}
    rows = store.arrays(LABELLED.format(sampled=SAMPLED if share < 1 else ""), when)
    labels = Examples(
        rows["user_row"].astype(np.int64),
        rows["post_row"].astype(np.int64),
        rows["liked"],
        rows["viewed"],
        np.ones(rows["liked"].size, np.float32),
    )
    examples = with_negatives(labels, before, negatives_per_like, seed)
    return thinned(examples, most_rows, seed)


def likes_among_all_posts(
    before: History, later: Likes, negatives_per_like: int, max_rows: int, seed: int
) -> Examples:
    """Collect the likes that came after a cutoff, and for each as many posts drawn evenly.

    Only posts that existed at the cutoff are liked or drawn here: what a list
    can hold. A post that the user likes by the later time is never drawn.

    Parameters
    ----------
    before
        As of the cutoff.
    later
        Every like up to the later time; those of `before` are left out.
    max_rows
        More likes than make so many rows are thinned at random.

    Returns
    -------
    Likes first, ascending by user, then post; `viewed` is False throughout and all weights are 1.
    """
    posts = len(before.post_counts)
    keys = later.users.astype(np.int64) * posts + later.posts  # ascending
    known = before.likes.users.astype(np.int64) * posts + before.likes.posts
    new = np.setdiff1d(keys, known, assume_unique=True)
    new = new[before.known[new % posts]]
    random = np.random.default_rng(seed)
    most = max(max_rows // (1 + negatives_per_like), 1)
    if new.size > most:
        new = np.sort(random.choice(new, most, replace=False))
    drawn = draw_evenly(new // posts, before.known, keys, negatives_per_like, random)
    pairs = np.concatenate([new, drawn])
    liked = np.arange(pairs.size) < new.size
    weights = np.ones(pairs.size, np.float32)
    return Examples(pairs // posts, pairs % posts, liked, np.zeros(pairs.size, bool), weights)


def draw_evenly(
    users: Int64s, known: Bools, liked: Int64s, per_like: int, random: np.random.Generator
) -> Int64s:
    """Draw posts evenly over the known ones, and leave out those that the user likes.

    Parameters
    ----------
    users
        (likes,) row of the user of each like.
    known
        (posts,) which posts can be drawn.
    liked
        Keys of the pairs that are not to be drawn, ascending.
    per_like
        Draws for each like.

    Returns
    -------
    Keys of the pairs drawn: user row * posts + post row.
    """
    choice = np.flatnonzero(known)
    if choice.size == 0 or liked.size == 0:
        return np.empty(0, np.int64)
    owners = np.repeat(users, per_like)
    drawn = owners * known.size + random.choice(choice, owners.size)
    nearest = liked[np.minimum(np.searchsorted(liked, drawn), liked.size - 1)]
    fresh: Int64s = drawn[nearest != drawn]
    return fresh


def thinned(examples: Examples, most_rows: int, seed: int) -> Examples:
    """Keep as many whole users, in random order, as have at most so many rows together."""
    if len(examples) <= most_rows:
        return examples
    rows_of_user = np.bincount(examples.users)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(rows_of_user))
    kept = np.zeros(rows_of_user.size, dtype=bool)
    kept[order[np.cumsum(rows_of_user[order]) <= most_rows]] = True
    return examples.where(kept[examples.users])


def like_rate(viewed: Bools, liked: Bools) -> float:
    """Return the share of the viewed rows that are liked; `LIKE_RATE_WITHOUT_VIEWS` if none is."""
    positive = np.count_nonzero(viewed & liked)
    return positive / np.count_nonzero(viewed) if positive else LIKE_RATE_WITHOUT_VIEWS


def with_negatives(
    examples: Examples, before: History, most_per_like: float, seed: int, rate: float | None = None
) -> Examples:
    """Add sampled negatives for the likes without a view, to the like rate of the views.

    Likes alone tell how often a post is shown and liked; negatives drawn as
    often as posts are shown leave how much it is liked. A post that the user
    liked before, or that stands among their examples, is never drawn.

    Parameters
    ----------
    rate
        Like rate to draw to; None takes that of the examples' own views.
    """
    alone = examples.where(~examples.viewed)
    if len(alone) == 0:
        return examples
    if rate is None:
        rate = like_rate(examples.viewed, examples.liked)
    per_like = min((1 - rate) / rate, MOST_NEGATIVES_PER_LIKE)
    if per_like == 0:
        return examples
    drawn_per_like = min(per_like, most_per_like)
    random = np.random.default_rng(seed)
    users = random.choice(alone.users, size=round(len(alone) * drawn_per_like))
    posts = len(before.post_counts)
    drawn = random.choice(posts, size=users.size, p=_shown(before))
    among_examples = np.isin(users * posts + drawn, examples.users * posts + examples.posts)
    fresh = ~(among_examples | before.likes.contain(users, drawn, posts))
    count = int(fresh.sum())
    no, weight = np.zeros(count, dtype=bool), np.full(count, per_like / drawn_per_like, np.float32)
    return Examples.together([examples, Examples(users[fresh], drawn[fresh], no, no, weight)])


def _shown(before: History) -> Float64s:
    """Return how often the network shows each post, as shares; equal ones where no view is known."""
    views = before.post_counts["views"].to_numpy(np.float64)
    told = (views >= before.post_counts["likes"]).mean() > MOSTLY
    shown = views + 1 if told else np.ones(views.size)
    shares: Float64s = shown / shown.sum()
    return shares
