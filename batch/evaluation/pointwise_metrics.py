"""Metrics over all rows together: ROC AUC, log loss and calibration, with a weight per row or user."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from batch.arrays import Bools, Float64s, Int64s

BINS = 10
MIN_PROBABILITY = 1e-6


class Auc:
    """ROC AUC of fixed scores under changing weights of the rows; the rows are sorted once.

    The AUC is the share of (liked, not liked) pairs of rows in which the liked one has the higher
    score. A tie counts as half. The weight of a pair is the product of its rows' weights.
    """

    def __init__(self, liked: Bools, scores: Float64s) -> None:
        self.order = np.argsort(scores, kind="stable")
        self._liked = liked[self.order].astype(np.float64)
        ordered = scores[self.order]
        new = np.ones(scores.size, dtype=bool)
        new[1:] = ordered[1:] != ordered[:-1]
        self._starts = np.flatnonzero(new)

    def compute(self, weights: Float64s) -> float:
        """Compute the AUC; NaN if all rows have the same label.

        Parameters
        ----------
        weights
            (rows,) in the order of `order`.
        """
        if weights.size == 0:
            return float("nan")
        positive = weights * self._liked
        negative = weights - positive
        if self._starts.size < weights.size:
            positive = np.add.reduceat(positive, self._starts)
            negative = np.add.reduceat(negative, self._starts)
        lower = negative.cumsum()
        pairs = positive.sum() * lower[-1]
        return float(positive @ (lower - negative / 2) / pairs) if pairs > 0 else float("nan")


def log_losses(liked: Bools, probabilities: Float64s) -> Float64s:
    """Return the log loss of every row (natural logarithm); probabilities are clipped off 0 and 1."""
    clipped = np.clip(probabilities, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    losses: Float64s = -np.log(np.where(liked, clipped, 1 - clipped))
    return losses


@dataclass(frozen=True)
class Calibration:
    """Predicted and observed likes, by deciles of the predicted probability.

    Attributes
    ----------
    sums
        (users, 3, BINS): rows, sum of predicted probabilities and number of likes of each user in
        each bin. Equal predictions share a bin, so a bin may be empty.
    """

    sums: Float64s

    @classmethod
    def from_rows(cls, users: Int64s, user_count: int, liked: Bools, probabilities: Float64s) -> Calibration:
        """Sort the rows into bins and add them up by user; `users` are indices below `user_count`."""
        if users.size == 0:
            return cls(np.zeros((user_count, 3, BINS)))
        edges = np.quantile(probabilities, np.arange(1, BINS) / BINS)
        cell = users * BINS + np.searchsorted(edges, probabilities, side="left")
        weights = (None, probabilities, liked.astype(np.float64))
        sums = [np.bincount(cell, weights=each, minlength=user_count * BINS) for each in weights]
        return cls(np.stack([each.reshape(user_count, BINS) for each in sums], axis=1).astype(np.float64))

    def deciles(self) -> list[dict[str, float]]:
        """Return `rows`, mean `predicted` and share `liked` of every bin that has rows."""
        rows, predicted, liked = self.sums.sum(axis=0)
        return [
            {"rows": int(n), "predicted": round(float(p / n), 4), "liked": round(float(y / n), 4)}
            for n, p, y in zip(rows, predicted, liked, strict=True)
            if n > 0
        ]


def calibration_error(sums: Float64s) -> float:
    """Return the expected calibration error: the mean of |predicted - liked|, bins weighted by rows.

    Parameters
    ----------
    sums
        (3, BINS) as in `Calibration`, added up over users; the result is NaN if there are no rows.
    """
    rows, predicted, liked = sums
    return float(np.abs(predicted - liked).sum() / rows.sum()) if rows.sum() > 0 else float("nan")
