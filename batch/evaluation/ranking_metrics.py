"""Ranking metrics of lists of posts, with binary relevance: a liked post is relevant.

hitrate@k: 1 if the first k posts include a relevant one, else 0.
precision@k: relevant posts among the first k, divided by k.
recall@k: relevant posts among the first k, divided by all relevant posts.
map@k: precision at the rank of each relevant post among the first k, summed and
divided by min(k, relevant posts).
ndcg@k: binary gain, log2 discount (Järvelin & Kekäläinen, 2002).

The last three are NaN for a list without a relevant post.

Metrics over all rows together (ROC AUC, log loss, calibration) have a weight per
row or user.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from batch.arrays import Bools, Float64s, Int64s

KS = (5, 10)
DEPTH = 20
"""How many posts of a list are evaluated; a report draws HitRate@k up to this k."""

DISCOUNT: Float64s = 1 / np.log2(np.arange(DEPTH) + 2)


@dataclass(frozen=True)
class RankedLists:
    """Ranked lists of posts, best first, reduced to what the metrics need.

    Attributes
    ----------
    hits
        (lists, DEPTH) whether the post at each rank is relevant; False beyond the end of a list.
    relevant
        (lists,) number of relevant posts, at any rank.
    candidates
        (lists,) number of posts that were ranked.
    """

    hits: Bools
    relevant: Int64s
    candidates: Int64s


def rank_rows(lists: Int64s, posts: Int64s, liked: Bools, scores: Float64s) -> RankedLists:
    """Rank the rows of each list by score; equal scores are ordered by ascending post.

    Parameters
    ----------
    lists
        (rows,) the list (of a user) that the row belongs to; the result is in ascending order of lists.
    posts, liked, scores
        (rows,) each; (list, post) pairs are distinct, in any order.
    """
    order = np.lexsort((posts, -scores, lists))
    liked = liked[order]
    _, first, owner = np.unique(lists[order], return_index=True, return_inverse=True)
    rank = np.arange(lists.size) - first[owner]
    shown = rank < DEPTH
    hits = np.zeros((first.size, DEPTH), dtype=bool)
    hits[owner[shown], rank[shown]] = liked[shown]
    relevant = np.bincount(owner, weights=liked, minlength=first.size).astype(np.int64)
    return RankedLists(hits, relevant, np.bincount(owner, minlength=first.size))


def compute_metrics(ranked: RankedLists, ks: tuple[int, ...] = KS) -> dict[str, Float64s]:
    """Compute every metric of every list: (lists,) each, NaN where the metric is undefined."""
    relevant = np.where(ranked.relevant > 0, ranked.relevant, np.nan)
    hits_so_far = ranked.hits.cumsum(axis=1, dtype=np.float64)
    precision = np.where(ranked.hits, hits_so_far / np.arange(1, DEPTH + 1), 0.0).cumsum(axis=1)
    gain = (ranked.hits * DISCOUNT).cumsum(axis=1)
    metrics: dict[str, Float64s] = {}
    for k in ks:
        hits = hits_so_far[:, k - 1]
        metrics |= {
            f"hitrate_at_{k}": np.asarray(hits > 0, np.float64),
            f"precision_at_{k}": hits / k,
            f"recall_at_{k}": hits / relevant,
            f"map_at_{k}": precision[:, k - 1] / np.minimum(relevant, k),
            f"ndcg_at_{k}": gain[:, k - 1] / _ideal_gain(relevant, k),
        }
    return metrics


def compute_random_metrics(
    relevant: Int64s, candidates: Int64s, ks: tuple[int, ...] = KS
) -> dict[str, Float64s]:
    """Compute the expected value of every metric of every list under random order: (lists,) each.

    With r of n posts relevant, each rank has a relevant post with probability r/n. The first k ranks
    have none with probability (n-r choose k) / (n choose k).
    """
    n, r = candidates.astype(np.float64)[:, None], relevant.astype(np.float64)[:, None]
    relevant_or_nan = np.where(relevant > 0, relevant, np.nan)
    rank = np.arange(DEPTH)
    in_list = (rank < n) * 1.0
    hit_at_rank = in_list * r / np.maximum(n, 1)
    miss_at_rank = np.where(rank < n, np.maximum(n - r - rank, 0) / np.maximum(n - rank, 1), 1.0)
    no_hit = np.asarray(miss_at_rank.cumprod(axis=1), np.float64)
    # Given a relevant post at a rank, each earlier rank has one with probability (r-1)/(n-1).
    precision_at_hit = (1 + rank * (r - 1) / np.maximum(n - 1, 1)) / (rank + 1)
    metrics: dict[str, Float64s] = {}
    for k in ks:
        upto = slice(0, k)
        hits: Float64s = hit_at_rank[:, upto].sum(axis=1)
        precision = (hit_at_rank * precision_at_hit)[:, upto].sum(axis=1)
        gain = (hit_at_rank * DISCOUNT)[:, upto].sum(axis=1)
        metrics |= {
            f"hitrate_at_{k}": 1 - no_hit[:, k - 1],
            f"precision_at_{k}": hits / k,
            f"recall_at_{k}": hits / relevant_or_nan,
            f"map_at_{k}": precision / np.minimum(relevant_or_nan, k),
            f"ndcg_at_{k}": gain / _ideal_gain(relevant_or_nan, k),
        }
    return metrics


def round_or_none(value: float, digits: int = 6) -> float | None:
    """Round a value for a JSON record; None for NaN or infinity."""
    return round(value, digits) if math.isfinite(value) else None


def _ideal_gain(relevant: Float64s, k: int) -> Float64s:
    """Return the gain of a list with all relevant posts first; NaN where `relevant` is NaN."""
    gains = DISCOUNT[:k].cumsum()
    last = np.minimum(np.nan_to_num(relevant, nan=1.0), k).astype(np.int64) - 1
    ideal: Float64s = np.where(np.isnan(relevant), np.nan, gains[last])
    return ideal


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
