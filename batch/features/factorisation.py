"""Logistic matrix factorisation by variational Bayes, with priors from attributes.

    log-odds of a like = level + bias of the user + bias of the post + user . post

A user's numbers (bias and factors) have a Gaussian prior whose mean is a linear
function of the user's attributes, a post's one of its groups (regression-based
latent factor models; Agarwal & Chen, 2009). The logistic likelihood is replaced
by its quadratic lower bound (Jaakkola & Jordan, 2000), and the posterior
covariance of one side enters the update of the other (variational Bayes; Lim &
Teh, 2007).

    level = log-odds of a like among all trials
    users = zeros; posts = right singular vectors of likes minus expected likes
    repeat ROUNDS times:
        for each user:
            for each of the user's pairs:
                x = current log-odds of a like
                curvature = trials tanh(x / 2) / 2x
                slope = likes - trials / 2 - curvature (level + bias of the post)
            precision = prior precision + sum of curvature E[post post']
            mean = precision^-1 (prior precision prior mean + sum of slope E[post])
        fit the effects of the users' attributes and their prior covariance
        the same for each post, with the roles exchanged

Memory is bounded: the pairs are processed in blocks of consecutive users. All
pairs of a user are in one block. The sums of a post are accumulated in the order
of the blocks, so results do not depend on threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
from scipy.sparse import csr_matrix, diags, vstack
from sklearn.utils.extmath import randomized_svd

from batch.arrays import Bools, Float32s, Float64s, Int32s, Int64s
from batch.features.factor_posterior import INITIAL_VARIANCE, FactorPosterior, batches, design, second_moments
from batch.features.trials import PAIRS_PER_BLOCK, Trials
from batch.loading.likes import Impressions

ROUNDS = 4

PRIOR_VIEWS = 20.0
"""Views at the average like rate that are added to each post's own for the initial factors."""

PAIRS_BATCH = 100_000
"""Pairs whose log-odds are computed together."""

THREADS = 2
"""Blocks in work at a time; it bounds the memory."""


@dataclass(frozen=True, eq=False)
class FactorRounds:
    """The inputs of the users' updates in each round, to repeat the updates for some users.

    Entry r of an array is the state before the users' update of round r. Arrays
    with one more entry end with the final state.

    Attributes
    ----------
    level
        Log-odds of a like among all trials.
    post_means
        (rounds + 1, posts, 1 + factors).
    post_covariances
        (rounds, posts, entries of a lower triangle) float32.
    post_effects
        (rounds + 1, columns of the posts' attributes, 1 + factors).
    post_prior_covariances
        (rounds, 1 + factors, 1 + factors).
    user_effects
        (rounds + 1, columns of the users' attributes, 1 + factors).
    user_prior_covariances
        (rounds + 1, 1 + factors, 1 + factors).
    """

    level: float
    post_means: Float64s
    post_covariances: Float32s
    post_effects: Float64s
    post_prior_covariances: Float64s
    user_effects: Float64s
    user_prior_covariances: Float64s

    def of_posts(self, rows: Int64s, attributes: csr_matrix) -> FactorRounds:
        """Return the rounds for another list of posts.

        Parameters
        ----------
        rows
            (posts,) row of each post in these rounds; -1 for a new post, which
            has the means and covariance of the prior.
        attributes
            (posts, columns) CSR.
        """
        row, column = np.tril_indices(self.post_means.shape[2])
        new = rows < 0
        means, covariances = self.post_means[:, rows], self.post_covariances[:, rows]
        means[:, new] = [attributes[new] @ effects for effects in self.post_effects]
        covariances[1:, new] = self.post_prior_covariances[1:, None, row, column]  # the first round's are 0
        fixed = {field.name: getattr(self, field.name) for field in fields(self)}
        return FactorRounds(**fixed | {"post_means": means, "post_covariances": covariances})


@dataclass(frozen=True, eq=False)
class _Block:
    """Trials of users with rows `users` of the posterior, and the posterior's row of each post."""

    users: slice
    trials: Trials
    post_rows: Int32s | None
    post_count: int

    @property
    def posts(self) -> Int32s:
        """(pairs,) row of the post of each pair."""
        posts = self.trials.impressions.posts
        return posts if self.post_rows is None else self.post_rows[posts]

    def csr(self, data: Float64s) -> csr_matrix:
        """Return (users, posts) CSR with one number per pair."""
        shape = (self.users.stop - self.users.start, self.post_count)
        return csr_matrix((data, self.posts, self.trials.impressions.starts), shape=shape)


@dataclass(frozen=True, eq=False)
class _Blocks:
    """All blocks, the log-odds of a like among their trials, and the threads that process blocks."""

    blocks: Sequence[_Block]
    level: float
    executor: ThreadPoolExecutor

    def update_users(self, users: FactorPosterior, post_means: Float64s, post_moments: Float64s) -> None:
        """Update the users' posterior from the posts' means and second moments."""
        prior_precision, linear = users.prior_terms()
        post_design = design(post_means)

        def update(block: _Block) -> None:
            curvature, slope = _bound(block, self.level, users.means, post_means, of_users=True)
            own = block.csr(slope) @ post_design + linear[block.users]
            weights = block.csr(curvature)
            for rows in batches(block.users.start, block.users.stop):
                part = slice(rows.start - block.users.start, rows.stop - block.users.start)
                users.update(rows, weights[part] @ post_moments, own[part], prior_precision)

        for _ in self.executor.map(update, self.blocks):
            pass

    def update_posts(self, users: FactorPosterior, posts: FactorPosterior) -> None:
        """Update the posts' posterior from that of the users."""

        def sums(block: _Block) -> tuple[Float64s, Float64s]:
            curvature, slope = _bound(block, self.level, users.means, posts.means, of_users=False)
            means = users.means[block.users]
            moments = second_moments(means, users.covariances[block.users])
            return block.csr(curvature).T @ moments, block.csr(slope).T @ design(means)

        of_blocks = self.executor.map(sums, self.blocks)
        precision, linear = next(of_blocks)
        for of_block in of_blocks:
            precision += of_block[0]
            linear += of_block[1]
        prior_precision, prior_linear = posts.prior_terms()
        linear += prior_linear
        for rows in batches(0, len(posts.means)):
            posts.update(rows, precision[rows], linear[rows], prior_precision)


def factorise(
    trials: Sequence[Trials],
    user_attributes: csr_matrix,
    post_attributes: csr_matrix,
    factors: int,
    seed: int,
) -> tuple[Float64s, FactorRounds]:
    """Fit the model; results depend on the arguments only, not on the number of threads.

    A user or a post without trials has its prior mean.

    Parameters
    ----------
    trials
        Consecutive parts of all users. They must contain likes, and trials without a like.
    user_attributes, post_attributes
        (entities, columns) CSR; one column is all ones.
    factors
        Number of factors; there are fewer if there are too few users or posts.

    Returns
    -------
    (users, 1 + factors) posterior means, bias first; and the rounds, where
    `post_means[-1]` are the means of the posts.
    """
    seen_users = np.concatenate([np.diff(part.impressions.starts) > 0 for part in trials])
    seen_posts = np.zeros(post_attributes.shape[0], np.bool_)
    for part in trials:
        seen_posts[part.impressions.posts] = True
    blocks = _blocks(trials, seen_posts)
    level = _level(blocks)
    first = _initial_factors(*_start_matrices(blocks, seed), factors, seed)
    users = FactorPosterior.start(
        user_attributes[seen_users], np.zeros((int(seen_users.sum()), first.shape[1])), INITIAL_VARIANCE
    )
    posts = FactorPosterior.start(post_attributes[seen_posts], first, 1.0)
    record = _Recorder(level, seen_posts, post_attributes)
    with ThreadPoolExecutor(THREADS) as executor:
        pairs = _Blocks(blocks, level, executor)
        for _ in range(ROUNDS):
            record.add(users, posts)
            pairs.update_users(users, posts.means, second_moments(posts.means, posts.covariances))
            users.learn_prior()
            pairs.update_posts(users, posts)
            posts.learn_prior()
    record.add(users, posts)
    means = user_attributes @ users.effects
    means[seen_users] = users.means
    return means, record.rounds()


def infer_users(rounds: FactorRounds, trials: Sequence[Trials], attributes: csr_matrix) -> Float64s:
    """Repeat the users' updates of `factorise` for some users, with the same posts.

    With the same trials and attributes a user gets the same means, up to
    rounding. A user without trials gets the prior mean.

    Parameters
    ----------
    rounds
        For the posts that `trials` refer to, see `FactorRounds.of_posts`.
    trials
        Consecutive parts of all these users.
    attributes
        (users, columns) CSR, with the same columns as in `factorise`.

    Returns
    -------
    (users, 1 + factors) posterior means, bias first.
    """
    count, size = attributes.shape[0], rounds.post_means.shape[2]
    users = FactorPosterior.start(attributes, np.zeros((count, size - 1)), INITIAL_VARIANCE)
    post_count = rounds.post_means.shape[1]
    blocks = _blocks(trials, np.ones(post_count, np.bool_), with_unseen_users=True)
    with ThreadPoolExecutor(THREADS) as executor:
        pairs = _Blocks(blocks, rounds.level, executor)
        for number, covariances in enumerate(rounds.post_covariances):
            means = rounds.post_means[number]
            pairs.update_users(users, means, second_moments(means, covariances))
            users.set_prior(rounds.user_effects[number + 1], rounds.user_prior_covariances[number + 1])
    unseen = np.concatenate([np.diff(part.impressions.starts) == 0 for part in trials])
    users.means[unseen] = users.prior_means[unseen]
    return users.means


class _Recorder:
    """Collects a `FactorRounds`; posts without trials have the means and covariance of their prior."""

    def __init__(self, level: float, seen_posts: Bools, post_attributes: csr_matrix) -> None:
        self._level, self._seen, self._attributes = level, seen_posts, post_attributes
        self._users: list[tuple[Float64s, Float64s]] = []
        self._posts: list[tuple[Float64s, Float32s, Float64s, Float64s]] = []

    def add(self, users: FactorPosterior, posts: FactorPosterior) -> None:
        """Add the state before a round, or the final one."""
        row, column = np.tril_indices(posts.means.shape[1])
        means = self._attributes @ posts.effects
        means[self._seen] = posts.means
        covariances = np.zeros((len(means), row.size), np.float32)
        if self._posts:
            covariances[:] = posts.prior_covariance[row, column]
        covariances[self._seen] = posts.covariances[:, row, column]
        self._users.append((users.effects, users.prior_covariance))
        self._posts.append((means, covariances, posts.effects, posts.prior_covariance))

    def rounds(self) -> FactorRounds:
        """Return the collected rounds."""
        means, covariances, effects, prior_covariances = zip(*self._posts, strict=True)
        user_effects, user_prior_covariances = zip(*self._users, strict=True)
        return FactorRounds(
            level=self._level,
            post_means=np.stack(means),
            post_covariances=np.stack(covariances[:-1]),
            post_effects=np.stack(effects),
            post_prior_covariances=np.stack(prior_covariances[:-1]),
            user_effects=np.stack(user_effects),
            user_prior_covariances=np.stack(user_prior_covariances),
        )


def _blocks(trials: Sequence[Trials], posts: Bools, *, with_unseen_users: bool = False) -> list[_Block]:
    """Cut trials into blocks of at most `PAIRS_PER_BLOCK`; only users and posts with trials have rows."""
    post_rows = None if posts.all() else (np.cumsum(posts) - 1).astype(np.int32)
    blocks, first = [], 0
    for part in trials:
        starts, pairs = part.impressions.starts, part.impressions
        if not with_unseen_users:
            starts = starts[np.append(np.diff(starts) > 0, True)]  # each user's first pair, and the end
        compact = Trials(
            Impressions(starts, pairs.posts, pairs.views, pairs.likes), part.sampled, part.sampled_weight
        )
        for start, stop in compact.impressions.blocks(PAIRS_PER_BLOCK):
            users = slice(first + start, first + stop)
            blocks.append(_Block(users, compact.of_users(start, stop), post_rows, int(posts.sum())))
        first += starts.size - 1
    return blocks


def _level(blocks: Sequence[_Block]) -> float:
    """Return the log-odds of a like among all trials."""
    likes = float(sum(int(block.trials.impressions.likes.sum(dtype=np.int64)) for block in blocks))
    counts = sum(float(block.csr(block.trials.counts(slice(None))).sum()) for block in blocks)
    return float(np.log(likes / (counts - likes)))


def _start_matrices(blocks: Sequence[_Block], seed: int) -> tuple[csr_matrix, csr_matrix]:
    """Return (users, posts) trials and likes for the initial factors.

    If there are several blocks, they are those of a random sample of users that
    fits one block. A sample is enough, because the rounds use all pairs.
    """
    pairs_of_user = np.concatenate([np.diff(block.trials.impressions.starts) for block in blocks])
    order = np.random.default_rng(seed).permutation(pairs_of_user.size)
    chosen = np.zeros(order.size, np.bool_)
    chosen[order[np.cumsum(pairs_of_user[order]) <= PAIRS_PER_BLOCK]] = True
    counts, likes = [], []
    for block in blocks:
        rows = chosen[block.users]
        whole = block.csr(block.trials.counts(slice(None)))
        counts.append(whole if rows.all() else whole[rows])
        whole = block.csr(block.trials.impressions.likes.astype(np.float64))
        likes.append(whole if rows.all() else whole[rows])
    return (counts[0], likes[0]) if len(blocks) == 1 else (vstack(counts).tocsr(), vstack(likes).tocsr())


def _bound(
    block: _Block, level: float, user_means: Float64s, post_means: Float64s, of_users: bool
) -> tuple[Float64s, Float64s]:
    """Return (pairs,) curvature and slope of the quadratic bound at each pair.

    The slope is without the level and without the bias of the side that is not
    updated: the posts in an update of the users.
    """
    impressions, posts = block.trials.impressions, block.posts
    users, user_means = impressions.users, user_means[block.users]
    user_factors, post_factors = (np.ascontiguousarray(means[:, 1:]) for means in (user_means, post_means))
    curvature, slope = np.empty(posts.size), np.empty(posts.size)
    for first in range(0, posts.size, PAIRS_BATCH):
        pairs = slice(first, min(first + PAIRS_BATCH, posts.size))
        user, post = users[pairs], posts[pairs]
        counts = block.trials.counts(pairs)
        odds = level + user_means[user, 0] + post_means[post, 0]
        odds += np.einsum("pf,pf->p", user_factors.take(user, axis=0), post_factors.take(post, axis=0))
        distance = np.maximum(np.abs(odds), 1e-6)
        curvature[pairs] = counts * np.tanh(distance / 2) / (2 * distance)
        slope[pairs] = impressions.likes[pairs] - counts / 2 - curvature[pairs] * level
        bias = post_means[post, 0] if of_users else user_means[user, 0]
        slope[pairs] -= curvature[pairs] * bias
    return curvature, slope


def _initial_factors(counts: csr_matrix, likes: csr_matrix, factors: int, seed: int) -> Float64s:
    """Return (posts, factors) of mean square 1: singular vectors of likes minus expected likes.

    There are fewer factors than requested if there are too few users or posts.

    Parameters
    ----------
    counts, likes
        (users, posts) CSR of the same pairs: trials, and likes among them.
    """
    views = counts.sum(axis=0)
    rates = likes.sum(axis=0) + PRIOR_VIEWS * likes.data.sum() / counts.sum()
    residual = likes - counts @ diags(np.ravel(rates / (views + PRIOR_VIEWS)))
    rank = min(factors, min(residual.shape) - 1)
    if rank < 1:
        return np.zeros((residual.shape[1], 0))
    right = randomized_svd(residual, rank, random_state=seed)[2]
    start: Float64s = right.T * np.sqrt(len(right.T))
    return start
