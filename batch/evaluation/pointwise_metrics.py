"""Metrics over all rows together: ROC AUC, log loss and calibration; each takes a weight per row or user."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from batch.arrays import Bools, Float64s, Int64s

BINS = 10
SMALLEST_PROBABILITY = 1e-6


class Auc:
    """ROC AUC of fixed scores under changing weights of the rows: the sort is done once.

    The share of (liked, not liked) pairs of rows in which the liked one scores
    higher, a tie counted as half; a pair weighs the product of its rows' weights.
    """

    def __init__(self, liked: Bools, scores: Float64s) -> None:
        self.order = np.argsort(scores, kind="stable")
        self._liked = liked[self.order].astype(np.float64)
        in_order = scores[self.order]
        new = np.ones(scores.size, dtype=bool)
        new[1:] = in_order[1:] != in_order[:-1]
        self._starts = np.flatnonzero(new)

    def of(self, weights: Float64s) -> float:
        """Return the AUC; NaN where the labels are all alike.

        Parameters
        ----------
        weights
            (rows,) in the order of `order`.
        """
        if weights.size == 0:
            return float("nan")
        yes = weights * self._liked
        no = weights - yes
        if self._starts.size < weights.size:
            yes, no = np.add.reduceat(yes, self._starts), np.add.reduceat(no, self._starts)
        lower = no.cumsum()
        pairs = yes.sum() * lower[-1]
        return float(yes @ (lower - no / 2) / pairs) if pairs > 0 else float("nan")


def losses(liked: Bools, probabilities: Float64s) -> Float64s:
    """Return the log loss of every row (natural logarithm), probabilities kept off 0 and 1."""
    clipped = np.clip(probabilities, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    found: Float64s = -np.log(np.where(liked, clipped, 1 - clipped))
    return found


@dataclass(frozen=True)
class Calibration:
    """What was predicted beside what happened, by deciles of the predicted probability.

    Attributes
    ----------
    sums
        (users, 3, BINS): rows, sum of predicted probabilities and number of
        likes of each user in each bin. Equal predictions share a bin, so a bin
        may be empty.
    """

    sums: Float64s

    @classmethod
    def of(cls, users: Int64s, user_count: int, liked: Bools, probabilities: Float64s) -> Calibration:
        """Sort the rows into bins and add them up by user; `users` are places below `user_count`."""
        if users.size == 0:
            return cls(np.zeros((user_count, 3, BINS)))
        edges = np.quantile(probabilities, np.arange(1, BINS) / BINS)
        cell = users * BINS + np.searchsorted(edges, probabilities, side="left")
        counted = (None, probabilities, liked.astype(np.float64))
        sums = [np.bincount(cell, weights=of_row, minlength=user_count * BINS) for of_row in counted]
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
    """Return the expected calibration error: mean distance of predicted and liked, bins weighed by rows.

    Parameters
    ----------
    sums
        (3, BINS) as in `Calibration`, added up over users; NaN comes out where there are no rows.
    """
    rows, predicted, liked = sums
    return float(np.abs(predicted - liked).sum() / rows.sum()) if rows.sum() > 0 else float("nan")
