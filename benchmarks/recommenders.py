"""Recommenders of other authors that our lists are compared with, each with its parameter grid.

All recommenders are fitted on the same log. A fitted one returns the scores of
all posts for given users. LightFM and RecTools need other package versions, so
they run in a separate process (worker.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.linalg import lapack
from scipy.sparse import csr_matrix, hstack, vstack
from scipy.sparse.linalg import svds

from batch.arrays import Float32s, Int32s, Int64s
from batch.loading.interaction_store import InteractionStore
from batch.loading.network import Network
from contract import columns

DAY_MICROSECONDS = 86_400 * 1_000_000

MAX_EASE_POSTS = 12_000
"""EASE inverts a dense (posts, posts) matrix: 0.6 GB at this size, one minute on one core."""

MAX_CATEGORIES = 200
MAX_NUMBER_VALUES = 20
QUANTILES = 10
POSTS_BATCH = 500

Signal = str
LIKES, COUNTS, SOME_VIEWS, ALL_VIEWS = "likes", "like counts", "views at 0.3", "views at 1"
VIEW_WEIGHT = {SOME_VIEWS: 0.3, ALL_VIEWS: 1.0}

LOG = """
    SELECT user_row, post_row, action = 'like' AS liked, epoch_us(happened_at) AS time
    FROM {known} WHERE happened_at <= $until ORDER BY ALL
"""

Parameters = dict[str, Any]
Scores = Callable[[Int64s], Float32s]
"""Users' rows -> (users, posts) scores; higher is better."""


class UnavailableError(Exception):
    """Raised if a recommender cannot run here; the message has the reason."""


@dataclass(frozen=True)
class Log:
    """Views and likes up to a time.

    Attributes
    ----------
    users, posts
        (interactions,) int32 rows.
    liked
        (interactions,) True for a like, False for a view.
    times
        (interactions,) int64 microseconds since 1970.
    shape
        Numbers of users and posts in the network.
    user_features, post_features
        (users or posts, features) float32, from `encode_features`.
    """

    users: Int32s
    posts: Int32s
    liked: npt.NDArray[np.bool_]
    times: Int64s
    shape: tuple[int, int]
    user_features: csr_matrix = field(repr=False)
    post_features: csr_matrix = field(repr=False)

    @cached_property
    def signals(self) -> tuple[Signal, ...]:
        """Signals that differ in this log: always likes; like counts and views if there are any.

        Like counts are included if a user liked a post more than once, views if
        there is a view without a like.
        """
        likes, liked_pairs = int(self.liked.sum()), self.matrix(LIKES).nnz
        signals: tuple[Signal, ...] = (LIKES,)
        if likes > liked_pairs:
            signals += (COUNTS,)
        if self.matrix(ALL_VIEWS).nnz > liked_pairs:
            signals += (SOME_VIEWS, ALL_VIEWS)
        return signals

    def matrix(self, signal: Signal) -> csr_matrix:
        """Return (users, posts) float32 weights.

        A liked pair has 1, or for like counts the number of likes; a pair that
        was only viewed has the signal's weight of a view, 0 if it has none.
        """
        weights = np.where(self.liked, 1.0, VIEW_WEIGHT.get(signal, 0.0)).astype(np.float32)
        used = weights > 0
        pairs = self.users[used].astype(np.int64) * self.shape[1] + self.posts[used]
        pairs, pair_rows = np.unique(pairs, return_inverse=True)
        values = np.zeros(pairs.size, np.float32)
        (np.add if signal == COUNTS else np.maximum).at(values, pair_rows, weights[used])
        return csr_matrix((values, (pairs // self.shape[1], pairs % self.shape[1])), shape=self.shape)

    def weights(self, signal: Signal) -> Float32s:
        """Return the (interactions,) weight of each interaction."""
        return np.where(self.liked, 1.0, VIEW_WEIGHT.get(signal, 0.0)).astype(np.float32)


def read_log(store: InteractionStore, network: Network, until: pd.Timestamp) -> Log:
    """Read all views and likes up to a time, inclusive."""
    interactions = store.arrays(LOG.format(known=store.known_at(until)), {"until": until})
    return Log(
        interactions["user_row"].astype(np.int32),
        interactions["post_row"].astype(np.int32),
        interactions["liked"].astype(bool),
        interactions["time"].astype(np.int64),
        (len(network.users), len(network.posts)),
        encode_features(network.users),
        encode_features(
            network.posts.drop(columns=[columns.CREATED_AT, columns.LIKE_COUNT, columns.VIEW_COUNT])
        ),
    )


def encode_features(frame: pd.DataFrame) -> csr_matrix:
    """Return (rows, features) 0 and 1: frequent values, or quantiles, of each column.

    Quantiles are used for numeric columns with more than MAX_NUMBER_VALUES distinct values.

    A column without repeated values, such as a text, gives no features.
    """
    blocks = [csr_matrix((len(frame), 0), dtype=np.float32)]
    for name in frame.columns:
        column = frame[name]
        if pd.api.types.is_numeric_dtype(column) and column.nunique() > MAX_NUMBER_VALUES:
            column = pd.qcut(column, QUANTILES, labels=False, duplicates="drop")
        counts = column.value_counts()
        frequent = sorted(counts[counts > 1].index[:MAX_CATEGORIES], key=str)
        rows = pd.Index(frequent).get_indexer(pd.Index(column)) if frequent else np.full(len(frame), -1)
        known = np.flatnonzero(rows >= 0)
        ones = np.ones(known.size, np.float32)
        blocks.append(csr_matrix((ones, (known, rows[known])), shape=(len(frame), len(frequent))))
    return csr_matrix(hstack(blocks, format="csr"), dtype=np.float32)


@dataclass(frozen=True)
class Recommender:
    """A recommender of another author.

    Attributes
    ----------
    grid
        Parameter -> values to choose from. The first values are the defaults, always tried.
    fit
        (log, parameters, seed) -> scores.
    signals
        Signals that it can use.
    """

    name: str
    grid: Mapping[str, tuple[Any, ...]]
    fit: Callable[[Log, Parameters, int], Scores]
    signals: tuple[Signal, ...] = (LIKES, COUNTS, SOME_VIEWS, ALL_VIEWS)

    def choose_points(self, log: Log, budget: int, seed: int) -> list[Parameters]:
        """Return at most `budget` points of the grid: the first, then random others."""
        grid = {"signal": tuple(signal for signal in log.signals if signal in self.signals), **self.grid}
        points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        order = 1 + np.random.default_rng(seed).permutation(len(points) - 1)
        return [points[0], *(points[index] for index in order[: budget - 1])]


def fit_popularity(log: Log, parameters: Parameters, seed: int) -> Scores:
    """Score by the likes of each post."""
    return _repeat_for_all_users(np.bincount(log.posts, log.weights(parameters["signal"]), log.shape[1]))


def fit_recency(log: Log, parameters: Parameters, seed: int) -> Scores:
    """Score by likes with exponential decay: weight 1/2 after `half_life_days`."""
    age = (log.times.max() - log.times) / DAY_MICROSECONDS
    decayed = log.weights(parameters["signal"]) * 0.5 ** (age / parameters["half_life_days"])
    return _repeat_for_all_users(np.bincount(log.posts, decayed, log.shape[1]))


def fit_item_knn(log: Log, parameters: Parameters, seed: int) -> Scores:
    """Score by cosine similarity to the posts that the user liked, over each post's nearest neighbours.

    `shrinkage` is added to the denominator, which shrinks similarities based on
    few users. With TF-IDF, users with many likes have less weight.
    """
    matrix = log.matrix(parameters["signal"])
    weighted = matrix
    if parameters["weights"] == "tf-idf":
        idf = np.log1p(log.shape[1] / np.maximum(matrix.getnnz(axis=1), 1))
        weighted = csr_matrix(matrix.multiply(idf[:, None]))
    by_post, blocks = csr_matrix(weighted.T), []
    norms = np.sqrt(np.asarray(by_post.multiply(by_post).sum(axis=1))).ravel()
    for start in range(0, log.shape[1], POSTS_BATCH):
        stop = min(start + POSTS_BATCH, log.shape[1])
        similar = csr_matrix(by_post[start:stop] @ weighted)
        rows = np.repeat(np.arange(stop - start), np.diff(similar.indptr))
        values = similar.data / (norms[start:stop][rows] * norms[similar.indices] + parameters["shrinkage"])
        values[rows + start == similar.indices] = 0  # a post is not its own neighbour
        order = np.lexsort((similar.indices, -values, rows))
        nearest = order[np.arange(rows.size) - similar.indptr[rows] < parameters["neighbours"]]
        pairs = (values[nearest], (rows[nearest], similar.indices[nearest]))
        blocks.append(csr_matrix(pairs, shape=similar.shape, dtype=np.float32))
    neighbours = csr_matrix(vstack(blocks).T)
    return lambda users: np.asarray((matrix[users] @ neighbours).toarray(), np.float32)


def fit_ease(log: Log, parameters: Parameters, seed: int) -> Scores:
    """Score by the item-item weights of EASE (Steck, 2019), over posts with interactions.

    Raises
    ------
    UnavailableError
        There are too many posts, or the matrix is singular.
    """
    matrix = log.matrix(parameters["signal"])
    posts = np.flatnonzero(matrix.getnnz(axis=0))
    if posts.size > MAX_EASE_POSTS:
        raise UnavailableError(f"{posts.size} posts, more than {MAX_EASE_POSTS}")
    interacted = matrix[:, posts]
    gram = (interacted.T @ interacted).toarray(order="F").astype(np.float32)
    gram[np.diag_indices_from(gram)] += parameters["l2"]
    inverse, failed = lapack.spotrf(gram, lower=1, overwrite_a=1)
    if not failed:
        inverse, failed = lapack.spotri(inverse, lower=1, overwrite_c=1)
    if failed:
        raise UnavailableError("its matrix cannot be inverted")
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    item_weights = inverse / -np.diag(inverse)
    np.fill_diagonal(item_weights, 0)

    def score(users: Int64s) -> Float32s:
        scores = np.zeros((users.size, log.shape[1]), np.float32)
        scores[:, posts] = interacted[users] @ item_weights
        return scores

    return score


def fit_svd(log: Log, parameters: Parameters, seed: int) -> Scores:
    """Score by the truncated SVD of the matrix (PureSVD; Cremonesi, Koren & Turrin, 2010)."""
    matrix = log.matrix(parameters["signal"])
    factors = min(parameters["factors"], min(matrix.shape) - 1)
    start = np.random.default_rng(seed).normal(size=min(matrix.shape))
    *_, posts = svds(matrix, factors, v0=start)
    return by_factors(matrix @ posts.T, posts.T)


def fit_als(log: Log, parameters: Parameters, seed: int) -> Scores:
    """Score by implicit's ALS (Hu, Koren & Volinsky, 2008)."""
    from implicit.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(**_drop_signal(parameters), random_state=seed)
    model.fit(log.matrix(parameters["signal"]), show_progress=False)
    return by_factors(model.user_factors, model.item_factors)


def fit_bpr(log: Log, parameters: Parameters, seed: int) -> Scores:
    """Score by implicit's BPR (Rendle et al., 2009), on one thread.

    With more threads it is not repeatable. It does not support weights, so views
    cannot count less than likes.
    """
    from implicit.bpr import BayesianPersonalizedRanking

    model = BayesianPersonalizedRanking(**_drop_signal(parameters), random_state=seed, num_threads=1)
    model.fit(log.matrix(parameters["signal"]), show_progress=False)
    return by_factors(model.user_factors, model.item_factors)


def _drop_signal(parameters: Parameters) -> Parameters:
    return {name: value for name, value in parameters.items() if name != "signal"}


def _repeat_for_all_users(post_scores: npt.NDArray[np.float64]) -> Scores:
    # float32 represents ranks exactly, but not sums of weights.
    ranks = np.unique(post_scores, return_inverse=True)[1].astype(np.float32)
    return lambda users: np.broadcast_to(ranks, (users.size, ranks.size))


def by_factors(users: Float32s, posts: Float32s) -> Scores:
    """Return the scores that are dot products of (users, d) and (posts, d) factors."""
    return lambda rows: np.asarray(users[rows] @ posts.T, np.float32)


FACTORS = (32, 16, 64, 128)
RECOMMENDERS = (
    Recommender("popularity", {}, fit_popularity, (LIKES,)),
    Recommender(
        "recency popularity",
        {"half_life_days": (7.0, 0.25, 0.5, 1.0, 2.0, 4.0, 14.0, 30.0, 60.0, 120.0, 240.0)},
        fit_recency,
    ),
    Recommender(
        "ItemKNN",
        {
            "weights": ("binary", "tf-idf"),
            "neighbours": (100, 20, 500, 5000),
            "shrinkage": (10.0, 0.0, 100.0, 1000.0),
        },
        fit_item_knn,
    ),
    Recommender("EASE", {"l2": (500.0, 20.0, 100.0, 2000.0, 8000.0)}, fit_ease),
    Recommender("PureSVD", {"factors": (32, 4, 8, 16, 64, 128, 256)}, fit_svd),
    Recommender(
        "implicit ALS",
        {
            "factors": FACTORS,
            "regularization": (1.0, 0.1, 10.0, 50.0),
            "alpha": (10.0, 1.0, 40.0),
            "iterations": (15,),
        },
        fit_als,
    ),
    Recommender(
        "implicit BPR",
        {
            "factors": (100, 32),
            "learning_rate": (0.01, 0.003, 0.05),
            "regularization": (0.01, 0.003),
            "iterations": (100, 200),
        },
        fit_bpr,
        (LIKES,),
    ),
)
