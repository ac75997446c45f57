"""Collaborative factors: a dot product per user and post, learned from impressions and likes.

They are learned from the same kind of examples as the forest. These are either
the impressions with their likes, where likes without a logged view are completed
by sampled negatives, or the likes and posts drawn uniformly from all posts (see
trials.py). The model is in factorisation.py. A user or a post without trials has
the prior mean of its attributes or groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression

from batch.arrays import Float32s, Float64s, Int64s
from batch.features.factorisation import FactorRounds, factorise, infer_users
from batch.features.trials import Trials, draw_even_trials, draw_trials
from batch.loading.cohorts import Groupings, one_hot
from batch.loading.examples import Examples, like_rate
from batch.loading.history import History
from batch.loading.network import Network

FACTORS = 10


@dataclass(frozen=True)
class Factors:
    """(users, factors) and (posts, factors) float32; users @ posts.T is added to the score."""

    users: Float32s
    posts: Float32s

    @classmethod
    def from_means(cls, level: float, users: Float64s, posts: Float64s) -> Factors:
        """Turn biases into factors: the dot product is level + bias + bias + user . post.

        Parameters
        ----------
        users, posts
            (entities, 1 + factors), bias first.
        """
        one, ones = np.ones((len(users), 1)), np.ones((len(posts), 1))
        return cls(
            np.hstack([users[:, :1] + level, one, users[:, 1:]]).astype(np.float32),
            np.hstack([ones, posts]).astype(np.float32),
        )

    @classmethod
    def zeros(cls, users: int, posts: int) -> Factors:
        """Return factors whose dot products are all zero."""
        return cls(np.zeros((users, 1), np.float32), np.zeros((posts, 1), np.float32))

    def of_users(self, rows: npt.NDArray[np.intp]) -> Factors:
        """Return the factors of some users, in the order of the rows, and of all posts."""
        return Factors(self.users[rows], self.posts)

    def dot(self, users: np.ndarray, posts: np.ndarray) -> Float32s:
        """Return (pairs,) float32 dot products of (user, post) rows."""
        product: Float32s = np.einsum("pf,pf->p", self.users[users], self.posts[posts])
        return product

    def as_log_odds(self, slope: float, intercept: float) -> Factors:
        """Return factors whose dot product is slope * dot + intercept."""
        ones = np.ones((len(self.users), 1), dtype=np.float32)
        constant = np.full((len(self.posts), 1), intercept, dtype=np.float32)
        scaled = self.users * np.float32(slope)
        return Factors(np.hstack([scaled, ones]), np.hstack([self.posts, constant]))


@dataclass(frozen=True, eq=False)
class FactorState:
    """The fitted factor model of a night, from which a refresh infers users and new posts.

    It identifies users and posts by row, not by id.

    Attributes
    ----------
    rounds
        None if the night had no likes, or only likes: then all factors are zero.
    rate
        Like rate of the night's views: that of likes without a view after completion.
    negatives_per_like
        Posts drawn uniformly for each like; None if the factors are learned from views.
    """

    rounds: FactorRounds | None
    rate: float
    negatives_per_like: int | None = None

    def factors(self, history: History, values: Int64s, night_rows: Int64s, seed: int) -> Factors:
        """Infer the factors of some users and of the current posts; posts of the night keep theirs.

        Parameters
        ----------
        history
            `impressions` and `likes` of these users only, in their order;
            `post_counts` and `groupings` of the current posts. `impressions`
            and `likes` refer to rows of these posts.
        values
            (users, attributes) indices of their attributes' values, as in the night.
        night_rows
            (posts,) the night's row of each current post; -1 for a new one,
            which gets the prior mean of its groups.
        seed
            Of the sampled negatives for likes without a view.

        Raises
        ------
        ValueError
            There is a group that the night did not have.
        """
        if self.rounds is None:
            return Factors.zeros(len(values), len(night_rows))
        user_columns, post_columns = (
            effects.shape[1] for effects in (self.rounds.user_effects, self.rounds.post_effects)
        )
        user_attributes = _user_attributes(values, user_columns - 1)
        post_attributes = _post_attributes(history.groupings)
        if post_attributes.shape[1] != post_columns:
            raise ValueError(
                f"posts have {post_attributes.shape[1]} attributes; the night had {post_columns}"
            )
        rounds = self.rounds.of_posts(night_rows, post_attributes)
        trials = _draw_trials(history, seed, self.rate, self.negatives_per_like)
        users = infer_users(rounds, trials, user_attributes)
        return Factors.from_means(rounds.level, users, rounds.post_means[-1])

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return arrays for an .npz file; none if there are no factors."""
        if self.rounds is None:
            return {}
        arrays = {field.name: np.asarray(getattr(self.rounds, field.name)) for field in fields(self.rounds)}
        negatives = -1 if self.negatives_per_like is None else self.negatives_per_like
        return arrays | {"rate": np.asarray(self.rate), "negatives_per_like": np.asarray(negatives)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FactorState:
        """Read what `to_arrays` returned; other names are ignored.

        Raises
        ------
        KeyError
            Some of the arrays are missing.
        """
        names = [field.name for field in fields(FactorRounds)]
        if not any(name in arrays for name in names):
            return cls(None, 0.0)
        rounds = FactorRounds(float(arrays["level"]), *(arrays[name] for name in names[1:]))
        negatives = int(arrays["negatives_per_like"])
        return cls(rounds, float(arrays["rate"]), None if negatives < 0 else negatives)


class _Fitted(NamedTuple):
    factors: Factors
    state: FactorState


_cache: WeakKeyDictionary[History, dict[tuple[int, int | None], _Fitted]] = WeakKeyDictionary()


def fit_factors(
    network: Network, history: History, seed: int, negatives_per_like: int | None = None
) -> Factors:
    """Learn factors from what happened up to `history.cutoff`; the same arguments give the same factors.

    They are cached as long as the history exists, because a night needs those
    of the same history several times. The dot product is in log-odds of a like.
    It is zero for all pairs if there are no likes, or only likes.

    Parameters
    ----------
    negatives_per_like
        Posts drawn uniformly for each like; None to learn from the impressions.
    """
    return _fit_cached(network, history, seed, negatives_per_like).factors


def fit_factor_state(
    network: Network, history: History, seed: int, negatives_per_like: int | None = None
) -> FactorState:
    """Return the state of the factors that `fit_factors` returns for the same arguments."""
    return _fit_cached(network, history, seed, negatives_per_like).state


def _fit_cached(network: Network, history: History, seed: int, negatives_per_like: int | None) -> _Fitted:
    fitted = _cache.setdefault(history, {})
    if (seed, negatives_per_like) not in fitted:
        fitted[seed, negatives_per_like] = _fit(network, history, seed, negatives_per_like)
    return fitted[seed, negatives_per_like]


def _fit(network: Network, history: History, seed: int, negatives_per_like: int | None) -> _Fitted:
    rate = 0.0
    if negatives_per_like is None:
        history = history.with_impressions(history.impressions)  # read once, and freed at the end
        rate = like_rate(history.impressions.views > 0, history.impressions.likes > 0)
    trials = _draw_trials(history, seed, rate, negatives_per_like)
    likes, others = (sum(counts) for counts in zip(*map(_count_likes, trials), strict=True))
    if not (likes and others):
        zeros = Factors.zeros(len(network.users), len(network.posts))
        return _Fitted(zeros, FactorState(None, rate, negatives_per_like))
    user_attributes = _user_attributes(network.cohorts.encode(network.users), network.cohorts.count)
    post_attributes = _post_attributes(history.groupings)
    users, rounds = factorise(trials, user_attributes, post_attributes, FACTORS, seed)
    factors = Factors.from_means(rounds.level, users, rounds.post_means[-1])
    return _Fitted(factors, FactorState(rounds, rate, negatives_per_like))


def _draw_trials(history: History, seed: int, rate: float, negatives_per_like: int | None) -> list[Trials]:
    if negatives_per_like is None:
        return draw_trials(history, seed, rate)
    return draw_even_trials(history, seed, negatives_per_like)


def _count_likes(trials: Trials) -> tuple[int, int]:
    """Return the number of likes, and of pairs with more trials than likes."""
    pairs = trials.impressions
    return int(pairs.likes.sum(dtype=np.int64)), int(np.count_nonzero(pairs.views > pairs.likes))


def fit_log_odds(factors: Sequence[Factors], examples: Sequence[Examples]) -> tuple[float, float]:
    """Fit slope and intercept that turn the dot product into log-odds of a like.

    Logistic regression (Platt scaling) on examples from after the likes that the
    factors were learned from, so that it calibrates them for later likes.

    Parameters
    ----------
    factors, examples
        One of each for every window.
    """
    dots = np.concatenate(
        [
            window_factors.dot(labels.users, labels.posts)
            for window_factors, labels in zip(factors, examples, strict=True)
        ]
    )
    dots = dots.astype(np.float64).reshape(-1, 1)
    liked = np.concatenate([labels.liked for labels in examples])
    unit = float(dots.std()) or 1.0
    fitted = LogisticRegression(C=np.inf).fit(dots / unit, liked)
    return float(fitted.coef_[0, 0]) / unit, float(fitted.intercept_[0])


def _user_attributes(values: Int64s, count: int) -> csr_matrix:
    """Return (users, 1 + count) CSR: ones, then a column for each value of an attribute."""
    return _hstack_ones(one_hot(values, count))


def _post_attributes(groupings: Groupings) -> csr_matrix:
    """Return (posts, columns) CSR: ones, then a column for each group of each grouping."""
    columns = []
    for name, size in zip(groupings.names, groupings.sizes, strict=True):
        group = groupings.of_post(name)
        columns.append(
            csr_matrix((np.ones(group.size), group, np.arange(group.size + 1)), (group.size, size))
        )
    return _hstack_ones(*columns)


def _hstack_ones(*columns: csr_matrix) -> csr_matrix:
    return hstack([csr_matrix(np.ones((columns[0].shape[0], 1))), *columns]).tocsr()
