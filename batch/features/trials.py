"""The pairs that collaborative factors learn from: impressions or likes, completed by sampled negatives."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from batch.arrays import Bools, Float64s
from batch.loading.examples import Examples, add_negatives, draw_unliked_posts
from batch.loading.history import History
from batch.loading.likes import Impressions

PAIRS_PER_BLOCK = 5_000_000
"""Pairs in a block of the factorisation; a block in work takes about 170 MB."""

NEGATIVES_PER_LIKE = 2.0
"""Negatives sampled for each like without a view; their total weight makes up the like rate."""

PAIRS_PER_SAMPLE = 1_000_000
"""Pairs that negatives are sampled for at a time if all pairs exceed a block; it takes 350 MB."""


@dataclass(frozen=True, eq=False)
class Trials:
    """Pairs of consecutive users with the number of trials and the number of likes (successes).

    A logged pair has as many trials as views, or as likes if there are more
    likes. A pair sampled as a negative has no like, and each draw counts as
    `sampled_weight` trials.

    Attributes
    ----------
    impressions
        The pairs; `views` of a sampled pair is how often it was drawn.
    sampled
        (pairs,) whether each was sampled; None if no pair was.
    sampled_weight
        Trials per draw.
    """

    impressions: Impressions
    sampled: Bools | None = None
    sampled_weight: float = 1.0

    def counts(self, pairs: slice) -> Float64s:
        """Return (pairs,) number of trials of some pairs."""
        counts = np.maximum(self.impressions.views[pairs], self.impressions.likes[pairs]).astype(np.float64)
        if self.sampled is not None:
            counts[self.sampled[pairs]] *= self.sampled_weight
        return counts

    def of_users(self, start: int, stop: int) -> Trials:
        """Return the trials of users `start` to `stop - 1`, without a copy."""
        pairs = slice(self.impressions.starts[start], self.impressions.starts[stop])
        sampled = None if self.sampled is None else self.sampled[pairs]
        return Trials(self.impressions.of_users(start, stop), sampled, self.sampled_weight)


def draw_trials(history: History, seed: int, rate: float) -> list[Trials]:
    """Return the impressions, and sampled negatives for the likes without a view.

    If there are more pairs than `PAIRS_PER_BLOCK`, users are processed in parts
    of at most `PAIRS_PER_SAMPLE` pairs. The first part uses `seed`, the next
    `seed + 1`, and so on.

    Parameters
    ----------
    history
        `impressions`, `likes` and `post_counts` are used.
    rate
        Like rate after completion.
    """
    pairs = history.impressions
    if pairs.views.all():
        return [Trials(pairs)]
    max_pairs = PAIRS_PER_BLOCK if pairs.posts.size <= PAIRS_PER_BLOCK else PAIRS_PER_SAMPLE
    completed = []
    for index, (start, stop) in enumerate(pairs.blocks(max_pairs)):
        known = replace(history, likes=history.likes.of_users(start, stop))
        completed.append(_complete(pairs.of_users(start, stop), known, seed + index, rate))
    return completed


def draw_even_trials(history: History, seed: int, negatives_per_like: int) -> list[Trials]:
    """Return the likes and, for each like, posts drawn uniformly from those that existed.

    A post that the user likes is never drawn. If there are more pairs than
    `PAIRS_PER_BLOCK`, users are processed in parts of at most `PAIRS_PER_SAMPLE`
    pairs. The first part uses `seed`, the next `seed + 1`, and so on.

    Parameters
    ----------
    history
        `likes` and `post_counts` are used.
    """
    likes, per_like = history.likes, 1 + negatives_per_like
    pairs = likes.posts.size * per_like
    max_likes = (PAIRS_PER_BLOCK if pairs <= PAIRS_PER_BLOCK else PAIRS_PER_SAMPLE) // per_like
    ones = np.ones(likes.posts.size, np.uint8)
    every_like = Impressions(likes.starts, likes.posts, ones, ones)
    parts = []
    for index, (start, stop) in enumerate(every_like.blocks(max_likes)):
        part = every_like.of_users(start, stop)
        parts.append(_add_drawn_posts(part, history.known, negatives_per_like, seed + index))
    return parts


def _add_drawn_posts(likes: Impressions, known: np.ndarray, negatives_per_like: int, seed: int) -> Trials:
    """Add uniformly drawn posts to the likes of some users."""
    users, posts = likes.users.astype(np.int64), known.size
    liked = users * posts + likes.posts
    drawn = draw_unliked_posts(users, known, liked, negatives_per_like, np.random.default_rng(seed))
    keys, draws = np.unique(drawn, return_counts=True)
    pairs = np.concatenate([liked, keys])
    order = np.argsort(pairs, kind="stable")
    pairs = pairs[order]
    counts = np.concatenate([likes.likes, draws])[order]
    is_like = order < liked.size
    return Trials(
        Impressions.from_pairs(
            pairs // posts, pairs % posts, counts, np.where(is_like, counts, 0), likes.starts.size - 1
        )
    )


def _complete(pairs: Impressions, history: History, seed: int, rate: float) -> Trials:
    """Add sampled negatives for the likes without a view to the pairs of some users.

    Parameters
    ----------
    history
        `likes` of these users only, and `post_counts`.
    """
    if pairs.views.all():
        return Trials(pairs)
    examples = Examples(
        pairs.users.astype(np.int64),
        pairs.posts.astype(np.int64),
        pairs.likes > 0,
        pairs.views > 0,
        np.maximum(pairs.views, pairs.likes).astype(np.float32),
    )
    completed = add_negatives(examples, history, NEGATIVES_PER_LIKE, seed, rate)
    negatives = slice(len(examples), None)
    posts = len(history.post_counts)
    keys, draws = np.unique(
        completed.users[negatives] * posts + completed.posts[negatives], return_counts=True
    )
    users = np.concatenate([examples.users, keys // posts])
    columns = np.concatenate([examples.posts, keys % posts])
    order = np.lexsort((columns, users))
    views, likes = np.concatenate([pairs.views, draws]), np.concatenate([pairs.likes, np.zeros_like(draws)])
    combined = Impressions.from_pairs(
        users[order], columns[order], views[order], likes[order], pairs.starts.size - 1
    )
    weight = float(completed.weights[-1]) if keys.size else 1.0
    return Trials(combined, order >= len(examples), weight)
