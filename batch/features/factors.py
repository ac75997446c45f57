"""Collaborative factors: a dot product per user and post, learnt from impressions and likes.

They are learnt from the same kind of examples as the forest: either from each
pair of a user and a post that was shown, and how often the user liked it, where
likes without a logged view are completed by sampled negatives; or from the
likes, and posts drawn evenly over all that exist. The model is in
factorisation.py. A user or a post without trials has the prior mean of its
attributes or groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression

from batch.arrays import Float32s, Float64s, Int64s
from batch.features.factorisation import PAIRS_PER_BLOCK, FactorRounds, Trials, factorise, infer_users
from batch.loading.cohorts import one_hot
from batch.loading.examples import Examples, draw_evenly, like_rate, with_negatives
from batch.loading.history import History
from batch.loading.impressions import Impressions
from batch.loading.network import Network
from batch.loading.post_groups import Groupings

FACTORS = 10

NEGATIVES_PER_LIKE = 2.0
"""Sampled for a like without a view; their weights add up to what the like rate asks for."""

PAIRS_PER_SAMPLE = 1_000_000
"""Pairs that negatives are sampled for at a time, where all pairs are more than a block; it takes 350 MB."""


@dataclass(frozen=True)
class Factors:
    """(users, factors) and (posts, factors) float32; score gains users @ posts.T."""

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
        """Return factors whose dot product is zero throughout."""
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
    """What a night learnt about taste: enough to infer users anew and to place new posts.

    It counts users and posts by row and knows no ids.

    Attributes
    ----------
    rounds
        None if the night had no likes, or nothing but likes: then all factors are zero.
    rate
        Like rate of the night's views, to which likes without a view are completed.
    negatives_per_like
        Posts drawn evenly for each like; None if the factors are learnt from views.
    """

    rounds: FactorRounds | None
    rate: float
    negatives_per_like: int | None = None

    def factors(self, history: History, values: Int64s, night_rows: Int64s, seed: int) -> Factors:
        """Infer the factors of some users and of the posts of now; the posts of the night keep theirs.

        Parameters
        ----------
        history
            `impressions` and `likes` of these users alone, in their order;
            `post_counts` and `groupings` of the posts of now. `impressions`
            and `likes` name rows of these posts.
        values
            (users, attributes) numbers of their attributes' values, numbered as in the night.
        night_rows
            (posts,) the night's row of each post of now; -1 for a new one,
            which gets the prior mean of its groups.
        seed
            For the sampled negatives of likes without a view.

        Raises
        ------
        ValueError
            A group is one that the night did not have.
        """
        if self.rounds is None:
            return Factors.zeros(len(values), len(night_rows))
        user_columns, post_columns = (
            effects.shape[1] for effects in (self.rounds.user_effects, self.rounds.post_effects)
        )
        of_users, of_posts = _user_attributes(values, user_columns - 1), _post_attributes(history.groupings)
        if of_posts.shape[1] != post_columns:
            raise ValueError(f"posts have {of_posts.shape[1]} attributes; the night had {post_columns}")
        rounds = self.rounds.of_posts(night_rows, of_posts)
        trials = _trials(history, seed, self.rate, self.negatives_per_like)
        users = infer_users(rounds, trials, of_users)
        return Factors.from_means(rounds.level, users, rounds.post_means[-1])

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return arrays for an .npz file; none if there are no factors."""
        if self.rounds is None:
            return {}
        kept = {field.name: np.asarray(getattr(self.rounds, field.name)) for field in fields(self.rounds)}
        negatives = -1 if self.negatives_per_like is None else self.negatives_per_like
        return kept | {"rate": np.asarray(self.rate), "negatives_per_like": np.asarray(negatives)}

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


Learnt = tuple[Factors, FactorState]

_of_histories: WeakKeyDictionary[History, dict[tuple[int, int | None], Learnt]] = WeakKeyDictionary()


def fit_factors(
    network: Network, history: History, seed: int, negatives_per_like: int | None = None
) -> Factors:
    """Learn factors from what happened up to `history.cutoff`; the same arguments give the same factors.

    They are kept as long as the history is, because a night asks for those of
    one history several times. The dot product is in log-odds of a like. It is
    zero throughout if there are no likes, or nothing but likes.

    Parameters
    ----------
    negatives_per_like
        Posts drawn evenly for each like; None learns from the impressions.
    """
    return _learnt(network, history, seed, negatives_per_like)[0]


def fit_factor_state(
    network: Network, history: History, seed: int, negatives_per_like: int | None = None
) -> FactorState:
    """Return what a refresh needs of the factors that `taste_factors` gives for the same arguments."""
    return _learnt(network, history, seed, negatives_per_like)[1]


def _learnt(network: Network, history: History, seed: int, negatives_per_like: int | None) -> Learnt:
    known = _of_histories.setdefault(history, {})
    if (seed, negatives_per_like) not in known:
        known[seed, negatives_per_like] = _learn(network, history, seed, negatives_per_like)
    return known[seed, negatives_per_like]


def _learn(network: Network, history: History, seed: int, negatives_per_like: int | None) -> Learnt:
    rate = 0.0
    if negatives_per_like is None:
        history = history.with_impressions(history.impressions)  # read once, and freed at the end
        rate = like_rate(history.impressions.views > 0, history.impressions.likes > 0)
    trials = _trials(history, seed, rate, negatives_per_like)
    likes, others = (sum(counts) for counts in zip(*map(_like_counts, trials), strict=True))
    if not (likes and others):
        nothing = Factors.zeros(len(network.users), len(network.posts))
        return nothing, FactorState(None, rate, negatives_per_like)
    of_users = _user_attributes(network.cohorts.rows(network.users), network.cohorts.count)
    of_posts = _post_attributes(history.groupings)
    users, rounds = factorise(trials, of_users, of_posts, FACTORS, seed)
    factors = Factors.from_means(rounds.level, users, rounds.post_means[-1])
    return factors, FactorState(rounds, rate, negatives_per_like)


def _trials(history: History, seed: int, rate: float, negatives_per_like: int | None) -> list[Trials]:
    if negatives_per_like is None:
        return draw_trials(history, seed, rate)
    return draw_even_trials(history, seed, negatives_per_like)


def _like_counts(trials: Trials) -> tuple[int, int]:
    """Return the number of likes, and of pairs with more trials than likes."""
    pairs = trials.impressions
    return int(pairs.likes.sum(dtype=np.int64)), int(np.count_nonzero(pairs.views > pairs.likes))


def fit_log_odds(factors: Sequence[Factors], examples: Sequence[Examples]) -> tuple[float, float]:
    """Fit slope and intercept that turn the dot product into log-odds of a like.

    One logistic regression on examples that came after the likes behind the
    factors: it tells how far what they say holds for what comes next.

    Parameters
    ----------
    factors, examples
        Of each window.
    """
    dots = np.concatenate(
        [
            of_window.dot(labels.users, labels.posts)
            for of_window, labels in zip(factors, examples, strict=True)
        ]
    )
    dots = dots.astype(np.float64).reshape(-1, 1)
    liked = np.concatenate([labels.liked for labels in examples])
    unit = float(dots.std()) or 1.0
    fitted = LogisticRegression(C=np.inf).fit(dots / unit, liked)
    return float(fitted.coef_[0, 0]) / unit, float(fitted.intercept_[0])


def draw_trials(history: History, seed: int, rate: float) -> list[Trials]:
    """Return the impressions, and sampled negatives for the likes without a view.

    If there are more pairs than `PAIRS_PER_BLOCK`, consecutive users are
    completed in parts of `PAIRS_PER_SAMPLE`. The first part draws with `seed`,
    the next with `seed + 1`, and so on.

    Parameters
    ----------
    history
        `impressions`, `likes` and `post_counts` are used.
    rate
        Like rate to complete to.
    """
    pairs = history.impressions
    if pairs.views.all():
        return [Trials(pairs)]
    max_pairs = PAIRS_PER_BLOCK if pairs.posts.size <= PAIRS_PER_BLOCK else PAIRS_PER_SAMPLE
    completed = []
    for number, (start, stop) in enumerate(pairs.blocks(max_pairs)):
        known = replace(history, likes=history.likes.of_users(start, stop))
        completed.append(_complete(pairs.of_users(start, stop), known, seed + number, rate))
    return completed


def draw_even_trials(history: History, seed: int, negatives_per_like: int) -> list[Trials]:
    """Return the likes, and for each as many posts drawn evenly over those that existed.

    A post that the user likes is never drawn. If there are more pairs than
    `PAIRS_PER_BLOCK`, consecutive users are drawn for in parts of
    `PAIRS_PER_SAMPLE`: the first with `seed`, the next with `seed + 1`, and so on.

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
    for number, (start, stop) in enumerate(every_like.blocks(max_likes)):
        part = every_like.of_users(start, stop)
        parts.append(_add_drawn_posts(part, history.known, negatives_per_like, seed + number))
    return parts


def _add_drawn_posts(likes: Impressions, known: np.ndarray, negatives_per_like: int, seed: int) -> Trials:
    """Add evenly drawn posts to the likes of some users."""
    users, posts = likes.users.astype(np.int64), known.size
    liked = users * posts + likes.posts
    drawn = draw_evenly(users, known, liked, negatives_per_like, np.random.default_rng(seed))
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
        `likes` of these users alone, and `post_counts`.
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
    completed = with_negatives(examples, history, NEGATIVES_PER_LIKE, seed, rate)
    negatives = slice(len(examples), None)
    posts = len(history.post_counts)
    keys, draws = np.unique(
        completed.users[negatives] * posts + completed.posts[negatives], return_counts=True
    )
    users = np.concatenate([examples.users, keys // posts])
    columns = np.concatenate([examples.posts, keys % posts])
    order = np.lexsort((columns, users))
    views, likes = np.concatenate([pairs.views, draws]), np.concatenate([pairs.likes, np.zeros_like(draws)])
    whole = Impressions.from_pairs(
        users[order], columns[order], views[order], likes[order], pairs.starts.size - 1
    )
    weight = float(completed.weights[-1]) if keys.size else 1.0
    return Trials(whole, order >= len(examples), weight)


def _user_attributes(values: Int64s, count: int) -> csr_matrix:
    """Return (users, 1 + count) CSR: ones, then a column per value of an attribute."""
    return _hstack_ones(one_hot(values, count))


def _post_attributes(groupings: Groupings) -> csr_matrix:
    """Return (posts, columns) CSR: ones, then a column per group of each grouping."""
    columns = []
    for name, size in zip(groupings.names, groupings.sizes, strict=True):
        group = groupings.of_post(name)
        columns.append(
            csr_matrix((np.ones(group.size), group, np.arange(group.size + 1)), (group.size, size))
        )
    return _hstack_ones(*columns)


def _hstack_ones(*columns: csr_matrix) -> csr_matrix:
    return hstack([csr_matrix(np.ones((columns[0].shape[0], 1))), *columns]).tocsr()
