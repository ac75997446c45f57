"""Collaborative factors: what likes say about taste, as a dot product per pair.

The like matrix (users x posts, 1 where liked) is divided by the square roots
of how many likes its row and its column have, and factored by truncated SVD.
The first factor of such a matrix says only how much each user and post is liked
in all, and is left out: what remains says who likes what *more than that*
(correspondence analysis; Greenacre, 1984). How often a post is shown and liked
by everybody is the forest's part.

A user without likes gets the factors that a ridge regression on the attributes
of those with likes expects of them (Gantner et al., 2010, "attribute-to-feature
mappings"); a post without likes gets zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.utils.extmath import randomized_svd

from batch.arrays import Float32s, Int64s
from batch.loading.examples import Examples
from batch.loading.likes import Likes
from batch.loading.people import one_hot

FACTORS = 8

PRIOR_LIKES_OF_POST = 50.0
"""So many likes as everybody's are added to each post, so that a rare one does not stand out by chance."""

RIDGE = 100.0
"""Likes of so many users of one kind weigh as much as the average of all."""


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


def like_factors(likes: Likes, posts: int, people: Int64s, seed: int) -> Factors:
    """Factor the like matrix; the same arguments give the same factors.

    Parameters
    ----------
    likes
        Up to the cutoff.
    posts
        How many posts there are.
    people
        (users, attributes), see batch/loading/people.py.
    """
    users = likes.starts.size - 1
    counts = np.diff(likes.starts)
    of_user = 1 / np.sqrt(np.maximum(counts, 1))
    of_post = 1 / np.sqrt(np.bincount(likes.posts, minlength=posts) + PRIOR_LIKES_OF_POST)
    weights = np.repeat(of_user, counts) * of_post[likes.posts]
    matrix = csr_matrix((weights, likes.posts, likes.starts), shape=(users, posts))
    rank = min(FACTORS, min(matrix.shape) - 2)
    if rank < 1 or matrix.nnz == 0:
        return Factors(np.zeros((users, 1), np.float32), np.zeros((posts, 1), np.float32))
    left, values, right = randomized_svd(matrix, rank + 1, random_state=seed)
    known = counts > 0
    taste = left[:, 1:] * values[1:] * of_user[:, None]
    taste = np.where(known[:, None], taste, _expected(taste, known, people))
    return Factors(taste.astype(np.float32), (right[1:].T * of_post[:, None]).astype(np.float32))


def _expected(factors: npt.NDArray[np.float64], known: npt.NDArray[np.bool_], people: Int64s) -> np.ndarray:
    """Expect every user's factors from their attributes, as those of the known users have them."""
    attributes = one_hot(people)
    expected: np.ndarray = (
        Ridge(RIDGE, solver="sparse_cg", tol=1e-6).fit(attributes[known], factors[known]).predict(attributes)
    )
    return expected


def fit_log_odds(factors: Factors, examples: Examples) -> tuple[float, float]:
    """Fit slope and intercept that turn the dot product into log-odds of a like.

    One logistic regression on examples that came after the likes behind the factors.
    """
    dots = factors.dot(examples.users, examples.posts).astype(np.float64).reshape(-1, 1)
    unit = float(dots.std()) or 1.0
    fitted = LogisticRegression(C=np.inf).fit(dots / unit, examples.liked)
    return float(fitted.coef_[0, 0]) / unit, float(fitted.intercept_[0])
