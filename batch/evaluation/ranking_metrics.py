"""Ranking metrics: each user's posts are ranked, those liked are relevant.

hitrate@k: 1 if a relevant post is among the first k. precision@k: relevant
posts among the first k, divided by k. recall@k: divided by the relevant posts.
map@k: precision at the rank of each relevant post among the first k, summed and
divided by min(k, relevant posts). ndcg@k: binary gain, log2 discount (Järvelin &
Kekäläinen, 2002). The last three are defined for users with a relevant post
only, and NaN for the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from batch.arrays import Bools, Float64s, Int64s

KS = (5, 10)
DEPTH = 20
"""How deep a list is judged: a report draws HitRate@k so far."""

DISCOUNT: Float64s = 1 / np.log2(np.arange(DEPTH) + 2)


@dataclass(frozen=True)
class RankedLists:
    """Lists of posts, best first, as far as metrics look at them.

    Attributes
    ----------
    hits
        (lists, DEPTH) whether the post at each rank is relevant; False beyond the list's end.
    relevant
        (lists,) how many posts are relevant, in the list's first DEPTH or not.
    candidates
        (lists,) how many posts were there to be ranked.
    """

    hits: Bools
    relevant: Int64s
    candidates: Int64s


def ranked_lists(lists: Int64s, posts: Int64s, liked: Bools, scores: Float64s) -> RankedLists:
    """Rank the rows of each list by score, equal scores the lower post first.

    Parameters
    ----------
    lists
        (rows,) the list (of a user) that the row belongs to; the lists come out in ascending order.
    posts, liked, scores
        (rows,) each; (list, post) pairs distinct, in any order.
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


def by_list(ranked: RankedLists, ks: tuple[int, ...] = KS) -> dict[str, Float64s]:
    """Return every metric of every list, (lists,) each, NaN where it is not defined."""
    liking = np.where(ranked.relevant > 0, ranked.relevant, np.nan)
    so_far = ranked.hits.cumsum(axis=1, dtype=np.float64)
    precision_at_hits = np.where(ranked.hits, so_far / np.arange(1, DEPTH + 1), 0.0).cumsum(axis=1)
    gain = (ranked.hits * DISCOUNT).cumsum(axis=1)
    found: dict[str, Float64s] = {}
    for k in ks:
        hits = so_far[:, k - 1]
        found |= {
            f"hitrate_at_{k}": np.asarray(hits > 0, np.float64),
            f"precision_at_{k}": hits / k,
            f"recall_at_{k}": hits / liking,
            f"map_at_{k}": precision_at_hits[:, k - 1] / np.minimum(liking, k),
            f"ndcg_at_{k}": gain[:, k - 1] / _best_gain(liking, k),
        }
    return found


def ranking_metrics(
    users: Int64s, posts: Int64s, liked: Bools, scores: Float64s, k: int = KS[0]
) -> dict[str, float]:
    """Return each metric's mean over the users it is defined for; NaN where there are none.

    Parameters
    ----------
    users, posts, liked, scores
        As in `ranked_lists`, a list per user.
    """
    values = by_list(ranked_lists(users, posts, liked, scores), (k,))
    known = {name: of_user[~np.isnan(of_user)] for name, of_user in values.items()}
    return {name: float(of_user.mean()) if of_user.size else np.nan for name, of_user in known.items()}


def expected_of_random(relevant: Int64s, candidates: Int64s, ks: tuple[int, ...] = KS) -> dict[str, Float64s]:
    """Return what every metric of every list is expected to be if the order is random.

    With r of n posts relevant, each rank holds a relevant one with probability
    r/n; the first k hold none with (n-r choose k) / (n choose k).
    """
    n, r = candidates.astype(np.float64)[:, None], relevant.astype(np.float64)[:, None]
    liking = np.where(relevant > 0, relevant, np.nan)
    rank = np.arange(DEPTH)
    reached = (rank < n) * 1.0
    at_rank = reached * r / np.maximum(n, 1)
    none_there = np.where(rank < n, np.maximum(n - r - rank, 0) / np.maximum(n - rank, 1), 1.0)
    misses = np.asarray(none_there.cumprod(axis=1), np.float64)
    # Given a relevant post at a rank, each rank before it holds one with probability (r-1)/(n-1).
    precision_there = (1 + rank * (r - 1) / np.maximum(n - 1, 1)) / (rank + 1)
    found: dict[str, Float64s] = {}
    for k in ks:
        upto = slice(0, k)
        hits: Float64s = at_rank[:, upto].sum(axis=1)
        found |= {
            f"hitrate_at_{k}": 1 - misses[:, k - 1],
            f"precision_at_{k}": hits / k,
            f"recall_at_{k}": hits / liking,
            f"map_at_{k}": (at_rank * precision_there)[:, upto].sum(axis=1) / np.minimum(liking, k),
            f"ndcg_at_{k}": (at_rank * DISCOUNT)[:, upto].sum(axis=1) / _best_gain(liking, k),
        }
    return found


def rounded(value: float, digits: int = 6) -> float | None:
    """Round a figure for a record; None for NaN or infinity."""
    return round(value, digits) if math.isfinite(value) else None


def _best_gain(liking: Float64s, k: int) -> Float64s:
    """Return the gain of a list with all relevant posts first; NaN where there are none."""
    sums = DISCOUNT[:k].cumsum()
    places = np.minimum(np.nan_to_num(liking, nan=1.0), k).astype(np.int64) - 1
    best: Float64s = np.where(np.isnan(liking), np.nan, sums[places])
    return best
