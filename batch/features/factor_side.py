"""The users, or the posts, of a factorisation: how their numbers are inferred, and what is expected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from batch.arrays import Float32s

Floats = npt.NDArray[np.float64]

FIRST_VARIANCE = 0.06
"""Of a bias, and of a user's factors, before the first round learns it."""

LEAST_VARIANCE = 1e-6

AT_A_TIME = 10_000
"""Entities whose matrices are worked on together; it bounds the memory."""


@dataclass
class Side:
    """All users, or all posts: for each a bias, then the factors.

    Attributes
    ----------
    means
        (entities, numbers).
    covariances
        (entities, numbers, numbers) float32, of how sure the means are.
    kinds
        (entities, columns) CSR of what is known of each beside; a column of ones among them.
    effects
        (columns, numbers) what each kind adds to what is expected.
    expected, spread
        (entities, numbers) and (numbers, numbers): mean and covariance before anything was shown.
    """

    means: Floats
    covariances: Float32s
    kinds: csr_matrix
    effects: Floats
    expected: Floats
    spread: Floats

    @classmethod
    def start(cls, kinds: csr_matrix, factors: Floats, variance: float) -> Side:
        """Begin with no bias, with these factors, and with an idea of how far factors stray."""
        count, size = len(factors), factors.shape[1] + 1
        return cls(
            means=np.hstack([np.zeros((count, 1)), factors]),
            covariances=np.zeros((count, size, size), np.float32),
            kinds=kinds,
            effects=np.zeros((kinds.shape[1], size)),
            expected=np.zeros((count, size)),
            spread=np.diag([FIRST_VARIANCE] + [variance] * (size - 1)),
        )

    @property
    def design(self) -> Floats:
        """(entities, numbers) what the other side is multiplied by: 1 for its bias, then the factors."""
        return np.hstack([np.ones((len(self.means), 1)), self.means[:, 1:]])

    def moments(self) -> Floats:
        """Return (entities, entries of a lower triangle): expected products of the design's columns."""
        design, (row, column) = self.design, np.tril_indices(len(self.spread))
        moments: Floats = design[:, row] * design[:, column]
        unsure = column > 0
        moments[:, unsure] += self.covariances[:, row[unsure], column[unsure]]
        return moments

    def update(self, other: Side, weights: csr_matrix, targets: csr_matrix) -> None:
        """Infer everybody's numbers from the other side's.

        Parameters
        ----------
        weights, targets
            (entities, other's entities) curvature of the likelihood's bound at each pair, and its slope.
        """
        size, moments, before = len(self.spread), other.moments(), np.linalg.inv(self.spread)
        row, column = np.tril_indices(size)
        linear = targets @ other.design + self.expected @ before
        for some in self._chunks():
            precision = np.empty((some.stop - some.start, size, size))
            precision[:, row, column] = precision[:, column, row] = weights[some] @ moments
            covariances = np.linalg.inv(precision + before)
            self.covariances[some] = covariances
            self.means[some] = np.einsum("eij,ej->ei", covariances, linear[some])

    def learn_prior(self) -> None:
        """Learn what to expect of each kind, and how far one strays from it.

        The expectation is fitted to what was shown with the own numbers
        integrated out (generalised least squares). A regression on the means
        would hardly move: they lie near what was expected before, wherever
        little was shown.
        """
        size, columns, before = len(self.spread), self.kinds.shape[1], np.linalg.inv(self.spread)
        gram, told = np.zeros((columns, columns, size, size)), np.empty_like(self.means)
        unsure = np.zeros((size, size))
        for some in self._chunks():
            shift = self.covariances[some] @ before  # how far means follow what is expected
            told[some] = self.means[some] - np.einsum("eij,ej->ei", shift, self.expected[some])
            _add_products(gram, self.kinds[some], before - before @ shift)
            unsure += self.covariances[some].sum(axis=0, dtype=np.float64)
        gram[np.arange(columns), np.arange(columns)] += before  # effects stray as much as entities do
        system = gram.transpose(0, 2, 1, 3).reshape(columns * size, columns * size)
        right = self.kinds.T @ (told @ before)
        self.effects = np.linalg.solve(system, right.ravel()).reshape(columns, size)
        self.expected = self.kinds @ self.effects
        for some in self._chunks():
            shift = self.covariances[some] @ before
            self.means[some] = told[some] + np.einsum("eij,ej->ei", shift, self.expected[some])
        rest = self.means - self.expected
        self.spread = (rest.T @ rest + unsure) / len(rest) + LEAST_VARIANCE * np.eye(size)

    def _chunks(self) -> Iterator[slice]:
        for start in range(0, len(self.means), AT_A_TIME):
            yield slice(start, min(start + AT_A_TIME, len(self.means)))


def _add_products(gram: Floats, kinds: csr_matrix, matrices: Floats) -> None:
    """Add to each pair of kinds the (numbers, numbers) matrices of those who are of both."""
    flat = matrices.reshape(len(matrices), -1)
    for column, of_kind in enumerate(kinds.T.tocsr()):
        members = of_kind.indices
        both = kinds[members].T @ (flat[members] * of_kind.data[:, None])
        gram[column] += both.reshape(gram.shape[1:])
