"""Logistic factorisation of who liked what they were shown, with priors from what users and posts are.

    log-odds of a like = level + bias of the user + bias of the post + user . post

A user's numbers (bias and factors) are drawn around what a regression on their
attributes expects, a post's around what one on its groups expects (regression
based latent factors; Agarwal & Chen, 2009). How far they stray from it is
learnt too. So whoever is hardly known is what others like them are, whoever
liked much is what they liked, and a factor that explains nothing fades away.

Users and posts are updated in turn, all at once: the logistic likelihood is
bounded by a quadratic (Jaakkola & Jordan, 2000), and the uncertainty of the one
side is carried into the update of the other, which keeps chance from being
taken for taste (variational Bayes; Lim & Teh, 2007).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, diags
from sklearn.utils.extmath import randomized_svd

from batch.features.factor_side import FIRST_VARIANCE, Side

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

ROUNDS = 4

PRIOR_SHOWN = 20.0
"""So many views at the average rate every post's like rate starts from, where factors begin."""

PAIRS_AT_A_TIME = 500_000


@dataclass(frozen=True)
class Trials:
    """What users were shown, and which of it they liked, as one sparse structure.

    Attributes
    ----------
    pairs
        (users, posts) CSR; the data is how often the post was shown, or for how many times it stands.
    liked
        (pairs,) in the order of that data: in how many of these it was liked.
    """

    pairs: csr_matrix
    liked: Floats

    def with_data(self, data: Floats) -> csr_matrix:
        """Return the same pairs with other numbers."""
        return csr_matrix((data, self.pairs.indices, self.pairs.indptr), shape=self.pairs.shape)

    @property
    def who(self) -> npt.NDArray[np.intp]:
        """(pairs,) row of the user of each pair."""
        return np.repeat(np.arange(self.pairs.shape[0]), np.diff(self.pairs.indptr))

    @property
    def seen(self) -> tuple[Flags, Flags]:
        """(users,) whether anything was shown to each, and (posts,) whether each was shown to anybody."""
        of_posts = np.bincount(self.pairs.indices, minlength=self.pairs.shape[1]) > 0
        return np.diff(self.pairs.indptr) > 0, of_posts

    def among(self, users: Flags, posts: Flags) -> Trials:
        """Return the same pairs, with the rows and columns of those only who are seen."""
        liked = self.with_data(self.liked)[users][:, posts]
        return Trials(self.pairs[users][:, posts], liked.data)


def factorise(
    trials: Trials, kinds_of_users: csr_matrix, kinds_of_posts: csr_matrix, factors: int, seed: int
) -> tuple[float, Floats, Floats]:
    """Return the level, (users, 1 + factors) and (posts, 1 + factors): bias, then factors.

    Likes and what was shown without one must both occur. A user who was shown
    nothing, and a post nobody was shown, get what is expected of their kinds.
    The same arguments give the same numbers.

    Parameters
    ----------
    kinds_of_users, kinds_of_posts
        (entities, columns) CSR of what is known of each beside; a column of ones among them.
    """
    seen = trials.seen
    trials = trials.among(*seen)
    likes = float(trials.liked.sum())
    level = float(np.log(likes / (float(trials.pairs.sum()) - likes)))
    first = _first_factors(trials, factors, seed)
    nothing = np.zeros((trials.pairs.shape[0], first.shape[1]))
    users = Side.start(kinds_of_users[seen[0]], nothing, FIRST_VARIANCE)
    posts = Side.start(kinds_of_posts[seen[1]], first, 1.0)
    for _ in range(ROUNDS):
        curvature, slope = _bound(trials, level, users, posts)
        rest = slope - curvature * posts.means[trials.pairs.indices, 0]
        users.update(posts, trials.with_data(curvature), trials.with_data(rest))
        users.learn_prior()
        curvature, slope = _bound(trials, level, users, posts)
        rest = slope - curvature * users.means[trials.who, 0]
        posts.update(users, trials.with_data(curvature).T.tocsr(), trials.with_data(rest).T.tocsr())
        posts.learn_prior()
    of_users, of_posts = kinds_of_users @ users.effects, kinds_of_posts @ posts.effects
    of_users[seen[0]], of_posts[seen[1]] = users.means, posts.means
    return level, of_users, of_posts


def _bound(trials: Trials, level: float, users: Side, posts: Side) -> tuple[Floats, Floats]:
    """Return (pairs,) the quadratic's curvature at each pair, and its slope once the level is taken off."""
    who, what = trials.who, trials.pairs.indices
    odds = level + users.means[who, 0] + posts.means[what, 0]
    for first in range(0, what.size, PAIRS_AT_A_TIME):
        at = slice(first, first + PAIRS_AT_A_TIME)
        odds[at] += np.einsum("pf,pf->p", users.means[who[at], 1:], posts.means[what[at], 1:])
    away = np.maximum(np.abs(odds), 1e-6)
    curvature = trials.pairs.data * np.tanh(away / 2) / (2 * away)
    return curvature, trials.liked - trials.pairs.data / 2 - curvature * level


def _first_factors(trials: Trials, factors: int, seed: int) -> Floats:
    """Return (posts, factors) of mean square 1: singular vectors of the likes less each post's like rate.

    Fewer factors than asked for where there are few users or posts.
    """
    views, likes = trials.pairs.sum(axis=0), trials.with_data(trials.liked)
    rates = likes.sum(axis=0) + PRIOR_SHOWN * trials.liked.sum() / trials.pairs.sum()
    surprise = likes - trials.pairs @ diags(np.ravel(rates / (views + PRIOR_SHOWN)))
    rank = min(factors, min(surprise.shape) - 1)
    if rank < 1:
        return np.zeros((surprise.shape[1], 0))
    right = randomized_svd(surprise, rank, random_state=seed)[2]
    start: Floats = right.T * np.sqrt(len(right.T))
    return start
