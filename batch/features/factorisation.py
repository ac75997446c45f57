"""Logistic matrix factorisation by variational Bayes, with priors from attributes.

    log-odds of a like = level + bias of the user + bias of the post + user . post

A user's numbers (bias and factors) have a Gaussian prior whose mean is a linear
function of the user's attributes, a post's one of its groups (regression-based
latent factor models; Agarwal & Chen, 2009). The logistic likelihood is replaced
by its quadratic lower bound (Jaakkola & Jordan, 2000), and the posterior
covariance of one side enters the update of the other (variational Bayes; Lim &
Teh, 2007).

    level = log-odds of a like among all trials
    users = zeros; posts = right singular vectors of likes less expected likes
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

Memory is bounded: the pairs are processed in blocks of consecutive users. The
sums of a user lie within one block. The sums of a post are added up block by
block, in the order of the blocks, so results do not depend on threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
from scipy.sparse import csr_matrix, diags, vstack
from sklearn.utils.extmath import randomized_svd

from batch.arrays import Bools, Float32s, Float64s, Int32s, Int64s
from batch.loading.impressions import Impressions

ROUNDS = 4

PRIOR_VIEWS = 20.0
"""Views at the average like rate that are added to each post's own before the factors start."""

PAIRS_PER_BLOCK = 5_000_000
"""Pairs processed together; a block in work takes about 170 MB."""

PAIRS_BATCH = 100_000
"""Pairs whose log-odds are computed together."""

THREADS = 2
"""Blocks in work at a time; it bounds the memory."""


@dataclass(frozen=True, eq=False)
class Trials:
    """Pairs of consecutive users with the number of trials and of likes, the number of successes.

    A pair that was logged has as many trials as views, or as likes if these
    are more. A pair that was sampled as a negative has no like, and each time
    it was drawn counts as `sampled_weight` trials.

    Attributes
    ----------
    impressions
        The pairs; `views` of a sampled pair is how often it was drawn.
    sampled
        (pairs,) whether each was sampled; None if no pair was.
    sampled_weight
        Trials a draw.
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


@dataclass(frozen=True, eq=False)
class FactorRounds:
    """What the updates of the users depended on, round by round: enough to repeat them for a few users.

    Entry r of a list is the state before the users' update of round r; where
    there is one entry more, the last is the final state.

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
        """Return the record for another list of posts.

        Parameters
        ----------
        rows
            (posts,) row in this record of each post of the list; -1 for a new
            one, which has the means and covariance of the prior.
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
    """Trials of users with rows `users` of the posterior, and the posterior's row of each pair's post."""

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
    """All blocks, the log-odds of a like among their trials, and threads that work on blocks."""

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
    """Fit the model; the same arguments give the same numbers, whatever the number of threads.

    A user or a post without trials gets its prior mean.

    Parameters
    ----------
    trials
        Of all users: consecutive parts. They must have likes, and trials without a like.
    user_attributes, post_attributes
        (entities, columns) CSR; one column is all ones.
    factors
        Their number; there are fewer if there are too few users or posts.

    Returns
    -------
    (users, 1 + factors) posterior means, bias first; and the record of the
    rounds, of which `post_means[-1]` are the posts' and `level` the level.
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
    """Repeat the users' updates of `factorise` for some users, the posts being as they were.

    A user with the trials and attributes of then gets the numbers of then, up
    to rounding. A user without trials gets the prior mean.

    Parameters
    ----------
    rounds
        For the posts that `trials` name, see `FactorRounds.of_posts`.
    trials
        Of all these users: consecutive parts.
    attributes
        (users, columns) CSR, with the columns that `factorise` was given.

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
        """Return what was collected."""
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


def _blocks(trials: Sequence[Trials], posts: Bools, with_unseen_users: bool = False) -> list[_Block]:
    """Cut trials into blocks of at most `PAIRS_PER_BLOCK`; rows count users and posts with trials only."""
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
    """Return (users, posts) trials and likes to start from.

    If there are several blocks, they are those of as many random users as one
    block holds. A sample is enough, because the rounds that follow use all pairs.
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

    The level is subtracted from the slope, and the bias of the side that is
    not updated: that of the posts for an update of the users.
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
        away = np.maximum(np.abs(odds), 1e-6)
        curvature[pairs] = counts * np.tanh(away / 2) / (2 * away)
        slope[pairs] = impressions.likes[pairs] - counts / 2 - curvature[pairs] * level
        bias = post_means[post, 0] if of_users else user_means[user, 0]
        slope[pairs] -= curvature[pairs] * bias
    return curvature, slope


def _initial_factors(counts: csr_matrix, likes: csr_matrix, factors: int, seed: int) -> Float64s:
    """Return (posts, factors) of mean square 1: singular vectors of the likes less each post's like rate.

    There are fewer factors than asked for if there are too few users or posts.

    Parameters
    ----------
    counts, likes
        (users, posts) CSR of the same pairs: trials, and likes among them.
    """
    views = counts.sum(axis=0)
    rates = likes.sum(axis=0) + PRIOR_VIEWS * likes.data.sum() / counts.sum()
    surprise = likes - counts @ diags(np.ravel(rates / (views + PRIOR_VIEWS)))
    rank = min(factors, min(surprise.shape) - 1)
    if rank < 1:
        return np.zeros((surprise.shape[1], 0))
    right = randomized_svd(surprise, rank, random_state=seed)[2]
    start: Float64s = right.T * np.sqrt(len(right.T))
    return start


INITIAL_VARIANCE = 0.06
"""Prior variance of a bias, and of a user's factors, before the first round learns it."""

MIN_VARIANCE = 1e-6

ENTITIES_BATCH = 10_000
"""Users or posts whose matrices are computed together; it bounds the memory."""


@dataclass
class FactorPosterior:
    """Gaussian posterior of all users or all posts: for each, a bias and then the factors.

    The prior of an entity is Gaussian too. Its mean is a linear function of
    the entity's attributes, and all entities share its covariance.

    Attributes
    ----------
    means
        (entities, 1 + factors) posterior means.
    covariances
        (entities, 1 + factors, 1 + factors) float32 posterior covariances; zero before the first update.
    attributes
        (entities, columns) CSR, the design matrix of the prior means; one column is all ones.
    effects
        (columns, 1 + factors) coefficients of the prior means.
    prior_means
        (entities, 1 + factors): `attributes @ effects`.
    prior_covariance
        (1 + factors, 1 + factors).
    """

    means: Float64s
    covariances: Float32s
    attributes: csr_matrix
    effects: Float64s
    prior_means: Float64s
    prior_covariance: Float64s

    @classmethod
    def start(cls, attributes: csr_matrix, factors: Float64s, variance: float) -> FactorPosterior:
        """Start from these factors without a bias.

        Parameters
        ----------
        factors
            (entities, factors).
        variance
            Prior variance of each factor.
        """
        count, size = len(factors), factors.shape[1] + 1
        return cls(
            means=np.hstack([np.zeros((count, 1)), factors]),
            covariances=np.zeros((count, size, size), np.float32),
            attributes=attributes,
            effects=np.zeros((attributes.shape[1], size)),
            prior_means=np.zeros((count, size)),
            prior_covariance=np.diag([INITIAL_VARIANCE] + [variance] * (size - 1)),
        )

    def prior_terms(self) -> tuple[Float64s, Float64s]:
        """Return the prior's precision matrix, and its linear terms in the shape of `means`."""
        precision: np.ndarray = np.linalg.inv(self.prior_covariance)
        return precision, self.prior_means @ precision

    def update(self, rows: slice, precision: Float64s, linear: Float64s, prior_precision: Float64s) -> None:
        """Set the posterior of some entities from the sums over their pairs.

        Parameters
        ----------
        rows
            The entities; at most `ENTITIES_BATCH`.
        precision
            (entities, entries of a lower triangle) sums over pairs of curvature times second moments.
        linear
            (entities, 1 + factors) linear terms, those of the prior included.
        prior_precision
            (1 + factors, 1 + factors).
        """
        size = len(prior_precision)
        row, column = np.tril_indices(size)
        matrices = np.empty((rows.stop - rows.start, size, size))
        matrices[:, row, column] = matrices[:, column, row] = precision
        matrices += prior_precision
        covariances = np.linalg.inv(matrices)
        self.covariances[rows] = covariances
        self.means[rows] = np.einsum("eij,ej->ei", covariances, linear)

    def learn_prior(self) -> None:
        """Fit the effects of the attributes and the prior covariance, and move the means accordingly.

        The effects maximise the bound of the likelihood with the entities' own
        numbers integrated out (generalised least squares). A regression on the
        posterior means would hardly move, because the means of entities with
        few pairs lie near their prior means.
        """
        size, columns = len(self.prior_covariance), self.attributes.shape[1]
        precision = np.linalg.inv(self.prior_covariance)
        residuals = self._residuals(precision)
        gram, covariance_sum = np.zeros((columns, columns, size, size)), np.zeros((size, size))
        for rows in batches(0, len(self.means)):
            shift = self.covariances[rows] @ precision
            _add_products(gram, self.attributes[rows], precision - precision @ shift)
            covariance_sum += self.covariances[rows].sum(axis=0, dtype=np.float64)
        gram[np.arange(columns), np.arange(columns)] += precision  # effects share the prior covariance
        system = gram.transpose(0, 2, 1, 3).reshape(columns * size, columns * size)
        right = self.attributes.T @ (residuals @ precision)
        self._move_means(residuals, precision, np.linalg.solve(system, right.ravel()).reshape(columns, size))
        rest = self.means - self.prior_means
        self.prior_covariance = (rest.T @ rest + covariance_sum) / len(rest) + MIN_VARIANCE * np.eye(size)

    def set_prior(self, effects: Float64s, prior_covariance: Float64s) -> None:
        """Do what `learn_prior` does, with effects and a prior covariance that are already known."""
        precision = np.linalg.inv(self.prior_covariance)
        self._move_means(self._residuals(precision), precision, effects)
        self.prior_covariance = prior_covariance

    def _residuals(self, precision: np.ndarray) -> Float64s:
        """Return (entities, 1 + factors) what the means would be if the prior means were zero."""
        residuals = np.empty_like(self.means)
        for rows in batches(0, len(self.means)):
            shift = self.covariances[rows] @ precision  # derivative of the posterior mean by the prior mean
            residuals[rows] = self.means[rows] - np.einsum("eij,ej->ei", shift, self.prior_means[rows])
        return residuals

    def _move_means(self, residuals: Float64s, precision: np.ndarray, effects: Float64s) -> None:
        """Set the effects, and the means that follow from them."""
        self.effects, self.prior_means = effects, self.attributes @ effects
        for rows in batches(0, len(self.means)):
            shift = self.covariances[rows] @ precision
            self.means[rows] = residuals[rows] + np.einsum("eij,ej->ei", shift, self.prior_means[rows])


def design(means: Float64s) -> Float64s:
    """Return (entities, 1 + factors) what the other side's numbers multiply: 1, then the factors."""
    return np.hstack([np.ones((len(means), 1)), means[:, 1:]])


def second_moments(means: Float64s, covariances: Float32s) -> Float64s:
    """Return (entities, entries of a lower triangle) expected products of the design's columns.

    Parameters
    ----------
    means
        (entities, 1 + factors).
    covariances
        (entities, 1 + factors, 1 + factors), or their (entities, entries) lower triangles.
    """
    columns, (row, column) = design(means), np.tril_indices(means.shape[1])
    moments: Float64s = columns[:, row] * columns[:, column]
    random = column > 0  # the first column is the constant 1
    if covariances.ndim == 3:
        moments[:, random] += covariances[:, row[random], column[random]]
    else:
        moments[:, random] += covariances[:, random]
    return moments


def batches(start: int, stop: int) -> Iterator[slice]:
    """Cut rows `start` to `stop - 1` into slices of at most `ENTITIES_BATCH`."""
    for first in range(start, stop, ENTITIES_BATCH):
        yield slice(first, min(first + ENTITIES_BATCH, stop))


def _add_products(gram: Float64s, attributes: csr_matrix, matrices: Float64s) -> None:
    """Add to `gram[a, b]` the sum of the entities' matrices, times their attributes a and b."""
    flat = matrices.reshape(len(matrices), -1)
    for column, of_column in enumerate(attributes.T.tocsr()):
        members = of_column.indices
        products = attributes[members].T @ (flat[members] * of_column.data[:, None])
        gram[column] += products.reshape(gram.shape[1:])
