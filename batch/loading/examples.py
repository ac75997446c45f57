"""Labelled examples: what happened after a cutoff, for training and for the holdout.

There are two kinds, one per recipe of batch/training/parameters.py:

`collect_labelled_views` returns the logged views. A view is positive if the
next event of the same user on the same post is a like, else negative. A like
without a preceding view is a positive too. For those likes, negatives are
sampled from the posts that the user has not liked: each post in proportion to
its impressions, with weights that keep the like rate of the views. A like that was
taken back is no event: its view is negative.

`collect_likes` returns the likes, and negatives sampled uniformly from all
posts that existed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from batch.arrays import Bools, Float32s, Float64s, Int64s
from batch.loading.explored import ExploredPlaces
from batch.loading.history import History
from batch.loading.interaction_store import InteractionStore
from batch.loading.likes import Likes

LOOK_BACK = timedelta(days=1)
"""A like up to this long after the cutoff is still matched with a view before the cutoff."""

LIKE_RATE_WITHOUT_VIEWS = 0.2
"""Assumed if a network logs no views: four sampled negatives per like."""

MAX_NEGATIVES_PER_LIKE = 20

MIN_SHARE_VIEWS_COUNTED = 0.9
"""Views count as impressions only if at least this share of the posts has no more likes than views."""

COUNT = "SELECT count(*) FROM {known} WHERE happened_at > $since AND happened_at <= $until"
LABELLED = """
    SELECT user_row, post_row, action = 'view' AS viewed,
           action = 'like' OR coalesce(next = 'like', false) AS liked{time}
    FROM (
        SELECT user_row, post_row, action, happened_at,
               lead(action) OVER steps AS next, lag(action) OVER steps AS previous
        FROM (
            SELECT DISTINCT user_row, post_row, action, happened_at FROM {known}
            WHERE happened_at > $look_back AND happened_at <= $until {sampled}
        ) seen
        WINDOW steps AS (PARTITION BY user_row, post_row ORDER BY happened_at, action = 'like')
    ) labelled
    WHERE happened_at > $since AND (action = 'view' OR coalesce(previous <> 'view', true))
    ORDER BY user_row, post_row, happened_at
"""
TIME = ", epoch_us(happened_at) AS happened_at"
SAMPLED = "AND user_row IN (SELECT unnest($users))"


@dataclass(frozen=True)
class Examples:
    """One row per labelled view, like without a view, and sampled negative.

    Attributes
    ----------
    users, posts
        (rows,) row indices in the network's frames.
    liked
        (rows,) the label.
    viewed
        (rows,) whether the row is a view that the network logged.
    weights
        (rows,) float32: 1, or the number of views that a sampled negative represents, or the weight of
        a view of an explored place, see explored.py.
    """

    users: Int64s
    posts: Int64s
    liked: Bools
    viewed: Bools
    weights: Float32s

    def __len__(self) -> int:
        return self.users.size

    @classmethod
    def concatenate(cls, parts: Sequence[Examples]) -> Examples:
        """Join the rows of several parts, in order."""
        return cls(
            np.concatenate([part.users for part in parts]),
            np.concatenate([part.posts for part in parts]),
            np.concatenate([part.liked for part in parts]),
            np.concatenate([part.viewed for part in parts]),
            np.concatenate([part.weights for part in parts]),
        )

    def select(self, keep: Bools | Int64s) -> Examples:
        """Return the rows chosen by a mask or by row indices."""
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


def collect_labelled_views(
    store: InteractionStore,
    before: History,
    until: datetime,
    *,
    max_rows: int,
    seed: int,
    negatives_per_like: float = MAX_NEGATIVES_PER_LIKE,
    known_at: datetime | None = None,
    with_views: bool = True,
    explored: ExploredPlaces | None = None,
) -> Examples:
    """Collect the examples with `before.cutoff` < happened_at <= until.

    Parameters
    ----------
    known_at
        A like that was taken back by then is no label; None for `until`.
    max_rows
        More rows are reduced by leaving out whole users at random, so that the
        others keep all their rows: first before negatives are sampled, then after.
    negatives_per_like
        Maximum number of sampled negatives per like. If the like rate calls for
        more, each has a higher weight.
    with_views
        Whether logged views are used; without them every like is one without a view.
    explored
        Views of these places get weights; None for none.
    """
    since = before.cutoff
    parameters: dict[str, Any] = {"since": since, "until": until}
    known = store.known_at(known_at or until)
    if not with_views:
        known = f"(SELECT * FROM {known} WHERE action = 'like')"
    share = max_rows / max(store.scalar(COUNT.format(known=known), parameters), 1)
    parameters |= {"look_back": since - LOOK_BACK}
    if share < 1:
        drawn = np.random.default_rng(seed).random(len(before.user_counts)) < share
        parameters |= {"users": np.flatnonzero(drawn).tolist()}
    parts = {"sampled": SAMPLED if share < 1 else "", "time": "" if explored is None else TIME}
    rows = store.arrays(LABELLED.format(known=known, **parts), parameters)
    users, posts, viewed = (
        rows["user_row"].astype(np.int64),
        rows["post_row"].astype(np.int64),
        rows["viewed"],
    )
    weights = np.ones(users.size, np.float32)
    if explored is not None:
        weights = explored.weights(users, posts, rows["happened_at"], viewed)
    labels = Examples(users, posts, rows["liked"], viewed, weights)
    examples = add_negatives(labels, before, negatives_per_like, seed)
    return limit_rows(examples, max_rows, seed)


def collect_likes(
    before: History, later: Likes, *, negatives_per_like: int, max_rows: int, seed: int
) -> Examples:
    """Collect the likes after a cutoff, and uniformly sampled negatives for each.

    Only posts that existed at the cutoff are used, as in a list. A post that
    the user likes by the later time is never a negative.

    Parameters
    ----------
    before
        As of the cutoff.
    later
        All likes up to the later time; those of `before` are left out.
    max_rows
        Likes are sampled if there would be more rows.

    Returns
    -------
    Likes first, ascending by user, then post. `viewed` is False and the weight is 1 in all rows.
    """
    posts = len(before.post_counts)
    keys = later.users.astype(np.int64) * posts + later.posts  # ascending
    known = before.likes.users.astype(np.int64) * posts + before.likes.posts
    new = np.setdiff1d(keys, known, assume_unique=True)
    new = new[before.known[new % posts]]
    random = np.random.default_rng(seed)
    max_likes = max(max_rows // (1 + negatives_per_like), 1)
    if new.size > max_likes:
        new = np.sort(random.choice(new, max_likes, replace=False))
    drawn = draw_unliked_posts(new // posts, before.known, keys, negatives_per_like, random)
    pairs = np.concatenate([new, drawn])
    liked = np.arange(pairs.size) < new.size
    weights = np.ones(pairs.size, np.float32)
    return Examples(pairs // posts, pairs % posts, liked, np.zeros(pairs.size, bool), weights)


def draw_unliked_posts(
    users: Int64s, known: Bools, liked: Int64s, per_like: int, random: np.random.Generator
) -> Int64s:
    """Sample posts uniformly from the known ones, and drop those that the user likes.

    Parameters
    ----------
    users
        (likes,) row of the user of each like.
    known
        (posts,) whether each post can be drawn.
    liked
        Keys of the liked pairs, ascending.
    per_like
        Number of draws for each like.

    Returns
    -------
    Keys of the sampled pairs: user row * posts + post row.
    """
    choice = np.flatnonzero(known)
    if choice.size == 0 or liked.size == 0:
        return np.empty(0, np.int64)
    owners = np.repeat(users, per_like)
    drawn = owners * known.size + random.choice(choice, owners.size)
    nearest = liked[np.minimum(np.searchsorted(liked, drawn), liked.size - 1)]
    fresh: Int64s = drawn[nearest != drawn]
    return fresh


def limit_rows(examples: Examples, max_rows: int, seed: int) -> Examples:
    """Keep whole users, in random order, as long as they have at most `max_rows` rows in total."""
    if len(examples) <= max_rows:
        return examples
    rows_of_user = np.bincount(examples.users)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(rows_of_user))
    kept = np.zeros(rows_of_user.size, dtype=bool)
    kept[order[np.cumsum(rows_of_user[order]) <= max_rows]] = True
    return examples.select(kept[examples.users])


def like_rate(viewed: Bools, liked: Bools) -> float:
    """Return the share of viewed rows that are liked; `LIKE_RATE_WITHOUT_VIEWS` if none is."""
    positive = np.count_nonzero(viewed & liked)
    return positive / np.count_nonzero(viewed) if positive else LIKE_RATE_WITHOUT_VIEWS


def add_negatives(
    examples: Examples, before: History, max_per_like: float, seed: int, rate: float | None = None
) -> Examples:
    """Add sampled negatives for the likes without a view, to match the like rate of the views.

    The frequency of a post among the likes depends on how often it is shown and
    on how well it is liked. Negatives are sampled in proportion to impressions,
    so that only the latter remains. A post that the user liked before, or that
    is among the user's examples, is never sampled.

    Parameters
    ----------
    max_per_like
        Maximum number of negatives per like; see `collect_labelled_views`.
    rate
        Like rate to match; None uses that of the views in `examples`.
    """
    unviewed = examples.select(~examples.viewed)
    if len(unviewed) == 0:
        return examples
    if rate is None:
        rate = like_rate(examples.viewed, examples.liked)
    per_like = min((1 - rate) / rate, MAX_NEGATIVES_PER_LIKE)
    if per_like == 0:
        return examples
    drawn_per_like = min(per_like, max_per_like)
    random = np.random.default_rng(seed)
    users = random.choice(unviewed.users, size=round(len(unviewed) * drawn_per_like))
    posts = len(before.post_counts)
    drawn = random.choice(posts, size=users.size, p=_impression_shares(before))
    among_examples = np.isin(users * posts + drawn, examples.users * posts + examples.posts)
    fresh = ~(among_examples | before.likes.contain(users, drawn, posts))
    count = int(fresh.sum())
    false, weight = np.zeros(count, dtype=bool), np.full(count, per_like / drawn_per_like, np.float32)
    return Examples.concatenate([examples, Examples(users[fresh], drawn[fresh], false, false, weight)])


def _impression_shares(before: History) -> Float64s:
    """Return (posts,) each post's share of all impressions; equal shares if views are not counted."""
    views = before.post_counts["views"].to_numpy(np.float64)
    counted = (views >= before.post_counts["likes"]).mean() > MIN_SHARE_VIEWS_COUNTED
    impressions = views + 1 if counted else np.ones(views.size)
    shares: Float64s = impressions / impressions.sum()
    return shares
