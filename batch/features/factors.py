"""Collaborative factors: what is shown and what is liked say about taste, as a dot product per pair.

What they are learnt from is each pair of a user and a post that was shown, and
how often the user liked it. A like without a logged view stands beside posts
that were drawn as often as the network shows them. The factorisation is in
factorisation.py; a user or post that was never seen has the numbers that are
expected of their attributes, or of its groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression

from batch.arrays import Float32s
from batch.features.factorisation import Trials, factorise
from batch.loading.examples import Examples, with_negatives
from batch.loading.groupings import Groupings
from batch.loading.history import History
from batch.loading.load import Network
from batch.loading.people import one_hot

FACTORS = 10

NEGATIVES_PER_LIKE = 2.0
"""Drawn for a like without a view; they weigh as many as the like rate asks for."""


@dataclass(frozen=True)
class Factors:
    """(users, factors) and (posts, factors) float32; score gains users @ posts.T."""

    users: Float32s
    posts: Float32s

    def dot(self, users: np.ndarray, posts: np.ndarray) -> Float32s:
        """Return (pairs,) float32 dot products of (user, post) places."""
        product: Float32s = np.einsum("pf,pf->p", self.users[users], self.posts[posts])
        return product

    def as_log_odds(self, slope: float, intercept: float) -> Factors:
        """Return factors whose dot product is slope * dot + intercept."""
        ones = np.ones((len(self.users), 1), dtype=np.float32)
        constant = np.full((len(self.posts), 1), intercept, dtype=np.float32)
        scaled = self.users * np.float32(slope)
        return Factors(np.hstack([scaled, ones]), np.hstack([self.posts, constant]))


_of_histories: WeakKeyDictionary[History, dict[int, Factors]] = WeakKeyDictionary()


def taste_factors(network: Network, history: History, seed: int) -> Factors:
    """Factor what was shown and liked up to `history.cutoff`; the same arguments give the same factors.

    They are kept as long as the history is: a night asks for those of one
    several times. The dot product is in log-odds of a like. It is zero
    throughout where there are no likes, or nothing but likes.
    """
    of_seed = _of_histories.setdefault(history, {})
    if seed not in of_seed:
        of_seed[seed] = _factors(network, history, seed)
    return of_seed[seed]


def _factors(network: Network, history: History, seed: int) -> Factors:
    users, posts = len(network.users), len(network.posts)
    trials = _trials(history, (users, posts), seed)
    if not 0 < trials.liked.sum() < trials.pairs.sum():
        return Factors(np.zeros((users, 1), np.float32), np.zeros((posts, 1), np.float32))
    groups = [_one_hot(history.groupings, name) for name in history.groupings.names]
    of_users, of_posts = (
        _beside_ones(one_hot(network.cohorts.rows(network.users), network.cohorts.count)),
        _beside_ones(*groups),
    )
    level, user, post = factorise(trials, of_users, of_posts, FACTORS, seed)
    return Factors(
        np.hstack([user[:, :1] + level, np.ones((users, 1)), user[:, 1:]]).astype(np.float32),
        np.hstack([np.ones((posts, 1)), post]).astype(np.float32),
    )


def fit_log_odds(factors: Factors, examples: Examples) -> tuple[float, float]:
    """Fit slope and intercept that turn the dot product into log-odds of a like.

    One logistic regression on examples that came after the likes behind the
    factors: it tells how far what they say holds for what is shown now.
    """
    dots = factors.dot(examples.users, examples.posts).astype(np.float64).reshape(-1, 1)
    unit = float(dots.std()) or 1.0
    fitted = LogisticRegression(C=np.inf).fit(dots / unit, examples.liked)
    return float(fitted.coef_[0, 0]) / unit, float(fitted.intercept_[0])


def _trials(history: History, shape: tuple[int, int], seed: int) -> Trials:
    """Return what was shown, likes without a view, and posts drawn beside these."""
    shown = history.impressions
    pairs = Examples(
        shown.users.astype(np.int64),
        shown.posts.astype(np.int64),
        shown.likes > 0,
        shown.views > 0,
        np.maximum(shown.views, shown.likes).astype(np.float32),
    )
    drawn = with_negatives(pairs, history, NEGATIVES_PER_LIKE, seed)
    likes = np.zeros(len(drawn))
    likes[: len(pairs)] = shown.likes
    places = (drawn.users, drawn.posts)
    return Trials(
        csr_matrix((drawn.weights.astype(np.float64), places), shape),
        csr_matrix((likes, places), shape).data,
    )


def _one_hot(groupings: Groupings, name: str) -> csr_matrix:
    group, size = groupings.of_post(name), groupings.sizes[groupings.names.index(name)]
    return csr_matrix((np.ones(group.size), group, np.arange(group.size + 1)), (group.size, size))


def _beside_ones(*kinds: csr_matrix) -> csr_matrix:
    return hstack([csr_matrix(np.ones((kinds[0].shape[0], 1))), *kinds]).tocsr()
