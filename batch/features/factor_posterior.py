"""Gaussian posteriors of all users or of all posts, and their priors from attributes.

batch/features/factorisation.py updates them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from batch.arrays import Float32s, Float64s

INITIAL_VARIANCE = 0.06
"""Prior variance of a bias, and of a user's factors, before the first round learns it."""

MIN_VARIANCE = 1e-6

ENTITIES_BATCH = 10_000
"""Users or posts whose matrices are computed together; it bounds the memory."""


@dataclass
class FactorPosterior:
    """Gaussian posterior of all users or all posts: for each, a bias and then the factors.

    The prior of an entity is Gaussian, too. Its mean is a linear function of
    the entity's attributes; its covariance is the same for all entities.

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
        factors integrated out (generalised least squares). A regression on the
        posterior means would hardly change, because the means of entities with
        few pairs are close to their prior means.
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
        deviations = self.means - self.prior_means
        squares = deviations.T @ deviations + covariance_sum
        self.prior_covariance = squares / len(deviations) + MIN_VARIANCE * np.eye(size)

    def set_prior(self, effects: Float64s, prior_covariance: Float64s) -> None:
        """Set given effects and a given prior covariance, and move the means as `learn_prior` does."""
        precision = np.linalg.inv(self.prior_covariance)
        self._move_means(self._residuals(precision), precision, effects)
        self.prior_covariance = prior_covariance

    def _residuals(self, precision: np.ndarray) -> Float64s:
        """Return (entities, 1 + factors) the means if the prior means were zero."""
        residuals = np.empty_like(self.means)
        for rows in batches(0, len(self.means)):
            shift = self.covariances[rows] @ precision  # derivative of the posterior mean by the prior mean
            residuals[rows] = self.means[rows] - np.einsum("eij,ej->ei", shift, self.prior_means[rows])
        return residuals

    def _move_means(self, residuals: Float64s, precision: np.ndarray, effects: Float64s) -> None:
        """Set the effects, and the means that result from them."""
        self.effects, self.prior_means = effects, self.attributes @ effects
        for rows in batches(0, len(self.means)):
            shift = self.covariances[rows] @ precision
            self.means[rows] = residuals[rows] + np.einsum("eij,ej->ei", shift, self.prior_means[rows])


def design(means: Float64s) -> Float64s:
    """Return (entities, 1 + factors) the coefficients of the other side's bias and factors."""
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
    """Add to `gram[a, b]` the sum over entities of their matrix times their attributes a and b."""
    flat = matrices.reshape(len(matrices), -1)
    for column, of_column in enumerate(attributes.T.tocsr()):
        members = of_column.indices
        products = attributes[members].T @ (flat[members] * of_column.data[:, None])
        gram[column] += products.reshape(gram.shape[1:])
